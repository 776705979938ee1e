#!/usr/bin/env bash
# Trains what a config says on this machine, and logs to the run's folder.
#
#   launch/train.sh configs/lm_150m.py runs/lm_150m data.mixture=runs/data/my_mixture.mixture.json
#
# Stop it with Ctrl-C or SIGTERM: it saves and exits with 75; the same command goes on.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: launch/train.sh CONFIG WORKDIR [field=value ...]" >&2
  exit 2
fi
config=$1
workdir=$2
shift 2
mkdir -p "$workdir"
# Compiled programs outlive a restart.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$workdir/jax_cache}"
exec > >(tee -a "$workdir/log.txt") 2>&1
exec speechlm train "$config" "$@" --workdir "$workdir"
