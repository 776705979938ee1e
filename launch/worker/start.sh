#!/usr/bin/env bash
# On a worker: starts the command in the background, unless it runs already.
#
#   start.sh BUCKET WORD...        (BUCKET may be '')
set -euo pipefail

# shellcheck source=launch/lib/words.sh
. "$(dirname "$0")/../lib/words.sh"
bucket=$1
shift
written=$(quoted "$@")
# shellcheck source=launch/worker/kept.sh
. "$(dirname "$0")/kept.sh"
devices=${LAUNCH_DEVICES:-/dev}
lockfile=${LAUNCH_LOCKFILE:-/tmp/libtpu_lockfile}

# A process that died badly can keep the chips (/dev/accel* or /dev/vfio/*) or libtpu's lock.
clear_chips() {
  local held=() path
  for path in "$devices"/accel* "$devices"/vfio/*; do
    [[ ! -e $path ]] || held+=("$path")
  done
  if ((${#held[@]})) && sudo fuser -s "${held[@]}"; then
    sudo fuser -s -k -TERM "${held[@]}" || true
    sleep "${LAUNCH_CLEAR_SECONDS:-10}"
    sudo fuser -s -k -KILL "${held[@]}" || true
  fi
  sudo rm -f "$lockfile"
}

# gs://BUCKET/... is where the bucket is mounted: speechlm itself reads folders.
local_words() {
  local word
  words=()
  for word in "$@"; do
    [[ -z $bucket ]] || word=${word//"$bucket/"/"$HOME/bucket/"}
    words+=("$word")
  done
}

if kept; then
  [[ $(cat "$folder/command") == "$written" ]] && exit 0
  echo "worker $(hostname): another command runs: $(cat "$folder/command")"
  exit 1
fi
mkdir -p "$folder"
rm -f "$folder/keeper" "$folder/pid" "$folder/exit"
printf '%s\n' "$written" >"$folder/command"
clear_chips
local_words "$@"
# Of an earlier multislice job; libtpu and JAX ask the machine for theirs.
for variable in "${!MEGASCALE_@}"; do unset "$variable"; done
export PATH=$HOME/speechlm_venv/bin:$PATH
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/jax_cache}
cd "$HOME/speechlm"
# The pid is the command's own: it gets the signal of stop.sh, its helpers do not.
# shellcheck disable=SC2016 # the inner shell's variables
nohup setsid bash -c '
  echo $$ >"$0/keeper"
  "$@" & echo $! >"$0/pid.part" && mv "$0/pid.part" "$0/pid"
  wait $! && code=0 || code=$?
  echo "$code" >"$0/exit.part" && mv "$0/exit.part" "$0/exit"
' "$folder" "${words[@]}" >>"$folder/log.txt" 2>&1 </dev/null &
until [[ -s $folder/pid ]]; do sleep 0.1; done
