# shellcheck shell=bash
# Reads settings and refuses those that cannot work, before anything costs money. Sourced.

SETTINGS=(
  project zone name accelerator slices tier reservation max_run_hours queue_hours bucket modules
  results when_done runtime network subnetwork internal_ips service_account poll_seconds restarts
)
project='' zone='' name=speechlm accelerator='' slices=1
tier=on-demand reservation='' max_run_hours='' queue_hours=''
bucket='' modules='' results='' when_done=keep
runtime='' network='' subnetwork='' internal_ips=no service_account=''
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

# Image of each chip: https://docs.cloud.google.com/tpu/docs/runtimes, read on 2026-11-21.
runtime_of() {
  case $1 in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
  esac
}

check_settings() {
  [[ $project && $zone ]] || die "settings: project and zone are needed (launch/settings.example)"
  [[ $accelerator =~ ^(v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
    die "accelerator '$accelerator': give v4-N, v5litepod-N, v5p-N or v6e-N"
  [[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "name '$name': small letters, digits and '-'"
  [[ $slices =~ ^[1-9][0-9]*$ ]] || die "slices '$slices': give a number"
  [[ $bucket =~ ^(gs://[a-z0-9._-]+)?$ ]] || die "bucket '$bucket': give gs://NAME, no folder"
  [[ $when_done =~ ^(keep|delete)$ ]] || die "when_done '$when_done': keep or delete"
  [[ $internal_ips =~ ^(yes|no)$ ]] || die "internal_ips '$internal_ips': yes or no"
  [[ $poll_seconds =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "poll_seconds '$poll_seconds': give a number"
  [[ $restarts =~ ^[0-9]+$ ]] || die "restarts '$restarts': give a number"
  check_tier
  check_modules
  runtime=${runtime:-$(runtime_of "$accelerator")}
  place=("--project=$project" "--zone=$zone")
}

check_tier() {
  [[ $tier =~ ^(on-demand|spot|reserved|flex-start)$ ]] ||
    die "tier '$tier': on-demand, spot, reserved or flex-start"
  [[ -z $reservation || $tier == reserved ]] || die "reservation: only with tier=reserved"
  [[ $tier != flex-start || $max_run_hours =~ ^[1-9][0-9]*$ ]] ||
    die "flex-start needs max_run_hours, at most 168"
  [[ $tier != flex-start || $slices == 1 ]] || die "flex-start: one slice only"
}

check_modules() {
  local path
  for path in ${modules//,/ }; do
    [[ -e $path ]] || die "modules: there is no $path"
  done
}

# Chips of one machine: those slices have one host, every other one has several.
one_host() {
  [[ $slices == 1 && $accelerator =~ ^(v4-8|v5p-8|v5litepod-[148]|v6e-[148])$ ]]
}
