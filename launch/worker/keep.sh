#!/usr/bin/env bash
# On a worker, started by start.sh: runs the command, copies its log into the bucket, keeps its exit code.
#
#   keep.sh LOGS WORD...        (LOGS: a folder of the mounted bucket, or '')
set -euo pipefail

# shellcheck source=launch/worker/kept.sh
. "$(dirname "$0")/kept.sh"
logs=$1
shift
log=$folder/log.txt
before=$(stat -c %s "$log") # what earlier commands wrote
copied=$before
said=

# Nothing can be appended to what lies in a bucket: the log since this start is written anew each
# time. A bucket that refuses or hangs does not end the run, nor hold it up but for the last copy, a few
# minutes at most. The lock is for a copy that still hangs while the last one begins.
copy_log() {
  local size
  size=$(stat -c %s "$log")
  [[ $logs && $size != "$copied" ]] || return 0
  if timeout --foreground -k 5 60 mkdir -p "$logs" 2>/dev/null &&
    flock -w 70 "$folder/copying" timeout --foreground -k 5 60 dd if="$log" of="$logs/$copy" \
      bs=1M iflag=skip_bytes skip="$before" status=none 2>/dev/null; then
    copied=$size
  elif [[ -z $said ]]; then
    said=yes
    echo "worker $(hostname): cannot copy this log into the bucket"
  fi
}

copy_now_and_then() {
  while sleep "${LAUNCH_LOG_SECONDS:-60}"; do copy_log; done
}

echo $$ >"$folder/keeper"
copy=$(hostname)-$(date -u +%Y%m%dT%H%M%S.%3NZ).txt
# The pid is the command's own: it gets the signal of stop.sh, its helpers do not.
"$@" &
command=$!
echo "$command" >"$folder/pid.part" && mv "$folder/pid.part" "$folder/pid"
copy_now_and_then &
copier=$!
wait "$command" && code=0 || code=$?
kill "$copier" 2>/dev/null || true
wait "$copier" 2>/dev/null || true
copy_log || true
echo "$code" >"$folder/exit.part" && mv "$folder/exit.part" "$folder/exit"
