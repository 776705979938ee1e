#!/usr/bin/env bash
# On a worker: SIGTERM to the command, which saves and ends with 75; waits until it did.
set -euo pipefail

folder=$HOME/launch_run
[[ -f $folder/pid && ! -f $folder/exit ]] || exit 0
kill -TERM "$(cat "$folder/pid")" 2>/dev/null || exit 0
for ((tenth = 0; tenth < 6000; tenth++)); do
  [[ ! -f $folder/exit ]] || exit 0
  sleep 0.1
done
echo "worker $(hostname): the command has not stopped within 10 minutes"
exit 1
