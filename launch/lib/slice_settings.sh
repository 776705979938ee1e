# shellcheck shell=bash
# Settings of `run` and `slice`. Sourced after settings.sh.

# shellcheck disable=SC2034 # what arguments.sh reads
settings_file=launch/settings
SETTINGS+=(
  zone tier reservation max_run_hours queue_hours modules results when_done runtime network
  subnetwork internal_ips
)
zone='' tier=on-demand reservation='' max_run_hours='' queue_hours=''
modules='' results='' when_done=keep
runtime='' network='' subnetwork='' internal_ips=no

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
  check_common_settings
  [[ $when_done =~ ^(keep|delete)$ ]] || die "when_done '$when_done': keep or delete"
  [[ $internal_ips =~ ^(yes|no)$ ]] || die "internal_ips '$internal_ips': yes or no"
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
  local path paths
  read_modules
  for path in "${paths[@]}"; do
    [[ -e $path ]] || die "modules: there is no $path"
  done
}

# Sets `paths`.
read_modules() {
  local path
  paths=()
  while IFS= read -r -d , path; do
    path=$(trimmed "$path")
    [[ -z $path ]] || paths+=("$path")
  done <<<"$modules,"
}
