#!/usr/bin/env bash
# On a worker: SIGTERM to the command, which saves and ends with 75; waits until it did.
set -euo pipefail

# shellcheck source=launch/worker/kept.sh
. "$(dirname "$0")/kept.sh"
kept || exit 0
kill -TERM "$(cat "$folder/pid")" 2>/dev/null || true
for ((look = 0; look < 12000; look++)); do
  kept || exit 0
  sleep 0.05
done
echo "worker $(hostname): the command has not stopped within 10 minutes"
exit 1
