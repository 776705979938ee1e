#!/usr/bin/env bash
# On a worker: Python, packages, the bucket. Run again, it does only what is missing.
#
#   setup.sh train|full [gs://BUCKET]
#
# uv brings Python 3.11, for which constraints.txt was made, as a file of its own: no root, no apt (which
# automatic updates lock after the start of a machine), the same on every image.
set -euo pipefail

UV_VERSION=0.13.9
packages=$1
bucket=${2:-}
venv=$HOME/speechlm_venv
export PATH=$HOME/.local/bin:$PATH
cd "$HOME/speechlm"
# shellcheck source=launch/lib/words.sh
. launch/lib/words.sh

quit() { echo "worker $(hostname): $*" && exit 1; }

install_uv() {
  command -v uv >/dev/null && return
  curl -LsSf "https://astral.sh/uv/$UV_VERSION/install.sh" | sh >/dev/null 2>&1 ||
    quit "cannot download uv; workers without an outside address need Cloud NAT"
}

add() {
  uv pip install --quiet --python "$venv/bin/python" -c constraints.txt "$@" ||
    quit "cannot install the packages"
}

# The stamp comes last: an installation that was cut short starts again.
install_packages() {
  local stamp
  stamp=$(cat constraints.txt requirements-train.txt setup.py | sha256sum | cut -c 1-16)-$packages
  [[ $(cat "$venv/.installed" 2>/dev/null) == "$stamp" ]] && return
  [[ -x $venv/bin/python ]] || uv venv --quiet --python 3.11 "$venv" || quit "cannot install Python"
  case $packages in
    train) add -r requirements-train.txt 'jax[tpu]' ;;
    full) add '.[tpu]' ;;
  esac
  echo "$stamp" >"$venv/.installed"
}

# The code itself changes with every sync; its version does not.
install_code() {
  uv pip install --quiet --python "$venv/bin/python" --no-deps --reinstall-package speechlm_jax . ||
    quit "cannot install speechlm_jax"
}

install_gcsfuse() {
  command -v gcsfuse >/dev/null && return
  local keys=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com/apt
  curl -LsSf "$url/doc/apt-key.gpg" | sudo tee "$keys" >/dev/null || quit "cannot reach $url"
  echo "deb [signed-by=$keys] $url gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # automatic updates may hold the lock after the machine's start
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update >/dev/null || quit "apt-get update failed"
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq -y install gcsfuse >/dev/null ||
    quit "cannot install gcsfuse"
}

# Written to before a run counts on it, by every worker.
mount_bucket() {
  local test
  test=$HOME/bucket/.launch_$(hostname)
  mkdir -p "$HOME/bucket"
  if ! mountpoint -q "$HOME/bucket"; then
    install_gcsfuse
    gcsfuse "${MOUNT_OPTIONS[@]/#/--}" "${bucket#gs://}" "$HOME/bucket" >/dev/null 2>&1 ||
      quit "cannot mount $bucket"
  fi
  { echo written >"$test" && rm "$test"; } 2>/dev/null ||
    quit "cannot write to $bucket; give its service account roles/storage.objectAdmin"
}

install_uv
install_packages
install_code
[[ -z $bucket ]] || mount_bucket
