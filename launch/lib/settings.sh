# shellcheck shell=bash
# Reads settings, and refuses those that cannot work before anything costs money. Sourced; then
# slice_settings.sh or gke_settings.sh, which have their own and `check_settings`.

SETTINGS=(project name accelerator slices bucket disk_gb service_account poll_seconds restarts)
project='' name=speechlm accelerator='' slices=1
bucket='' disk_gb='' service_account=''
poll_seconds=30 restarts=50

# set_setting WHERE NAME=value: blanks inside a value stay, those around it do not.
set_setting() {
  local key value
  key=$(trimmed "${2%%=*}")
  value=$(trimmed "${2#*=}")
  [[ $2 == *=* && $key != *[[:space:]]* && " ${SETTINGS[*]} " == *" $key "* ]] ||
    die "$1: there is no setting '$key'; there are: ${SETTINGS[*]}"
  [[ $value != *[[:cntrl:]]* ]] || die "$1: $key holds a line break or another control character"
  printf -v "$key" '%s' "$value"
}

# A comment starts a line, or follows a blank.
read_settings() {
  local line number=0
  while IFS= read -r line || [[ $line ]]; do
    number=$((number + 1))
    line=${line%%[[:space:]]#*}
    line=$(trimmed "$line")
    [[ -z $line || $line == '#'* ]] || set_setting "$1:$number" "$line"
  done <"$1"
}

# Without the blanks at both ends.
trimmed() {
  local text=$1
  text=${text#"${text%%[![:space:]]*}"}
  printf '%s' "${text%"${text##*[![:space:]]}"}"
}

# check_name SETTING PATTERN WHAT: what goes into names of the cloud's is such a name.
check_name() {
  [[ ${!1} =~ ^($2)$ ]] || die "$1 '${!1}': give $3"
}

check_common_settings() {
  check_name project '[a-z][a-z0-9.:-]*' "the project's id, e.g. my-project"
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
