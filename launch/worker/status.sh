#!/usr/bin/env bash
# On a worker: `HOST running`, `HOST exit CODE` or `HOST nothing`, and the log's last line.
set -euo pipefail

# shellcheck source=launch/worker/kept.sh
. "$(dirname "$0")/kept.sh"
if kept; then
  echo "$(hostname) running"
elif [[ -f $folder/exit ]]; then
  echo "$(hostname) exit $(cat "$folder/exit")"
elif [[ -f $folder/pid ]]; then
  echo "$(hostname) exit 137" # the machine restarted under it
else
  echo "$(hostname) nothing"
fi
[[ ! -f $folder/command ]] || echo "command $(cat "$folder/command")"
[[ ! -s $folder/log.txt ]] || echo "log $(tail -n 1 "$folder/log.txt")"
