#!/usr/bin/env bash
# On a worker: `host NAME running`, `... exit CODE` or `... nothing`, the command, the log's last line.
set -euo pipefail

# shellcheck source=launch/worker/kept.sh
. "$(dirname "$0")/kept.sh"
if kept; then
  echo "host $(hostname) running"
elif [[ -f $folder/exit ]]; then
  echo "host $(hostname) exit $(cat "$folder/exit")"
elif [[ -f $folder/pid ]]; then
  echo "host $(hostname) exit 137" # the machine restarted under it
else
  echo "host $(hostname) nothing"
fi
[[ ! -f $folder/command ]] || echo "command $(cat "$folder/command")"
[[ ! -s $folder/log.txt ]] || echo "log $(tail -n 1 "$folder/log.txt")"
