# shellcheck shell=bash
# Reads settings, and refuses those that cannot work before anything costs money. Sourced; then
# slice_settings.sh or gke_settings.sh, which have their own and `check_settings`.

SETTINGS=(project name accelerator slices bucket disk_gb service_account poll_seconds restarts)
project='' name=speechlm accelerator='' slices=1
bucket='' disk_gb='' service_account=''
poll_seconds=30 restarts=50

# set_setting WHERE NAME=value
set_setting() {
  local key=${2%%=*}
  [[ $2 == *=* && " ${SETTINGS[*]} " == *" $key "* ]] ||
    die "$1: there is no setting '$key'; there are: ${SETTINGS[*]}"
  printf -v "$key" '%s' "${2#*=}"
}

read_settings() {
  local line number=0
  while IFS= read -r line || [[ $line ]]; do
    number=$((number + 1))
    line=${line%%#*}
    line=${line//[[:space:]]/}
    [[ -z $line ]] || set_setting "$1:$number" "$line"
  done <"$1"
}

check_common_settings() {
  [[ $accelerator =~ ^(v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
    die "accelerator '$accelerator': give v4-N, v5litepod-N, v5p-N or v6e-N"
  [[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "name '$name': small letters, digits and '-'"
  [[ $slices =~ ^[1-9][0-9]*$ ]] || die "slices '$slices': give a number"
  [[ $bucket =~ ^(gs://[a-z0-9._-]+)?$ ]] || die "bucket '$bucket': give gs://NAME, no folder"
  [[ $disk_gb =~ ^([1-9][0-9]*)?$ ]] || die "disk_gb '$disk_gb': give a number, or nothing"
  [[ $poll_seconds =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "poll_seconds '$poll_seconds': give a number"
  [[ $restarts =~ ^[0-9]+$ ]] || die "restarts '$restarts': give a number"
}

# Chips of one machine: those slices have one host, every other one has several.
one_host() {
  [[ $slices == 1 && $accelerator =~ ^(v4-8|v5p-8|v5litepod-[148]|v6e-[148])$ ]]
}
