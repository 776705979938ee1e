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
  if [[ ${2:-} == train ]]; then
    plan_training "$@"
  else
    # Other verbs are programs of one host.
    first_worker
    packages=full
    one_host || command=(env JAX_PLATFORMS=cpu "$@")
  fi
  check_gs_words
}

plan_training() {
  local folder
  folder=$(value_of --workdir "$@")
  [[ $(value_of --hosts "$@") ]] || command+=(--hosts 0) # JAX asks the machine
  [[ -z $disk_gb || $(value_of --disk-gb "$@") ]] || command+=(--disk-gb "$disk_gb")
  one_host || shared "$folder" ||
    die "several hosts: give --workdir gs://BUCKET/FOLDER, or a path from / that all of them see"
}

shared() { [[ $1 == gs://* || $1 == /* ]]; }

# What `mounted` leaves as gs:// is not of the bucket in the settings, or read by speechlm itself.
check_gs_words() {
  local own word words
  own=$(value_of --disk-gb "${command[@]}")
  mounted "$bucket" / "${command[@]}"
  for word in "${words[@]}"; do
    [[ $word != *gs://* || ($own && $word == data.mixture=gs://*) ]] ||
      die "$word: only the bucket of the settings can be read (bucket=${bucket:-none})"
  done
}
