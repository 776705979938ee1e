#!/usr/bin/env bash
# On a worker: starts the command in the background, unless it runs already.
#
#   start.sh NAME BUCKET WORD...        (BUCKET may be ''; NAME is that of the slice)
set -euo pipefail

# shellcheck source=launch/lib/words.sh
. "$(dirname "$0")/../lib/words.sh"
name=$1
bucket=$2
shift 2
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

if kept; then
  [[ $(cat "$folder/command") == "$written" ]] && exit 0
  echo "worker $(hostname): another command runs: $(cat "$folder/command")"
  exit 1
fi
mkdir -p "$folder"
rm -f "$folder/keeper" "$folder/pid" "$folder/exit"
printf '%s\n' "$written" >"$folder/command"
clear_chips
mounted "$bucket" "$HOME/bucket" "$@"
# Of an earlier multislice job; libtpu and JAX ask the machine for theirs.
for variable in "${!MEGASCALE_@}"; do unset "$variable"; done
export PATH=$HOME/speechlm_venv/bin:$PATH
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/jax_cache}
cd "$HOME/speechlm"
logs=${bucket:+$HOME/bucket/logs/$name}
nohup setsid bash launch/worker/keep.sh "$logs" "${words[@]}" >>"$folder/log.txt" 2>&1 </dev/null &
until [[ -s $folder/pid ]]; do sleep 0.02; done
