# shellcheck shell=bash
# The folder of a worker's command, and whether it is still kept. Sourced.
#
# launch_run/ holds log.txt, command, pid (the command's own), keeper (the shell that waits for it
# and then writes exit, with the exit code).

folder=$HOME/launch_run

# Asked before anybody reads exit: a keeper that is gone has written it, unless it was killed.
kept() {
  [[ -f $folder/keeper && ! -f $folder/exit ]] && kill -0 "$(cat "$folder/keeper")" 2>/dev/null
}
