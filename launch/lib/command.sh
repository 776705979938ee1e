# shellcheck shell=bash
# What the user's command needs: hosts, packages, a folder that all hosts see. Sourced.

# plan_command WORD...: sets `command`, `packages`, `written` (the folder it writes) and where it runs.
# shellcheck disable=SC2034 # what `run` and `watch` read
plan_command() {
  command=("$@") packages=train written=''
  everywhere
  [[ $1 == speechlm ]] || return 0
  written=$(value_of --workdir "$@")
  written=${written:-$(value_of --out "$@")}
  check_gs_words "$@"
  if [[ ${2:-} == train ]]; then
    plan_training "$@"
  else
    # Other verbs are programs of one host.
    first_worker
    packages=full
    one_host || command=(env JAX_PLATFORMS=cpu "$@")
  fi
}

plan_training() {
  [[ $(value_of --hosts "$@") ]] || command+=(--hosts 0) # JAX asks the machine
  one_host || shared "$written" ||
    die "several hosts: give --workdir gs://BUCKET/FOLDER, or a path from / that all of them see"
}

shared() { [[ $1 == gs://* || $1 == /* ]]; }

# Only the bucket of the settings is mounted.
check_gs_words() {
  local word
  for word in "$@"; do
    [[ $word != *gs://* || ($bucket && $word == *"$bucket/"*) ]] ||
      die "$word: only the bucket of the settings can be read (bucket=${bucket:-none})"
  done
}

# value_of OPTION WORD...: what follows it.
value_of() {
  local option=$1
  shift
  while (($#)); do
    case $1 in
      "$option") echo "${2:-}" && return ;;
      "$option"=*) echo "${1#*=}" && return ;;
    esac
    shift
  done
}
