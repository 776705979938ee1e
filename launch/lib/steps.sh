# shellcheck shell=bash
# One function a step, in the order in which `launch/run` takes them. Sourced.

ARCHIVE=.cache/launch/speechlm.tar.gz

# A typing error in the bucket's name shows before the slice costs money.
check_bucket() {
  [[ $bucket ]] || return 0
  cloud "bucket $bucket" gcloud storage buckets describe "$bucket" '--format=value(name)'
}

# Asks for the slice, once; a request that came to nothing gives way to a new one.
create_slice() {
  read_state ABSENT
  case $state in
    ABSENT) ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING | LOST) delete_slice ;;
    *) say "$name is there: $state" && return ;;
  esac
  check_bucket
  create_command
  say "asking for $slices x $accelerator ($tier) in $zone"
  cloud "cannot create $name" "${create[@]}"
}

wait_for_slice() {
  local said=
  while true; do
    read_state ACTIVE
    case $state in
      ACTIVE) return ;;
      FAILED) fail "$name failed: $(why_failed)" ;;
      ABSENT | DELETING) fail "$name is $state; create it first" ;;
      SUSPENDING | SUSPENDED | LOST) return 1 ;; # taken before it was used
    esac
    [[ $state == "$said" ]] || say "$(date +%T) $name: $state"
    said=$state
    pause
  done
}

# The tree without what is made here, and the user's own modules at its root, so that
# `--module my_lab.py` means the same on the workers.
pack() {
  local path paths own=()
  read_modules
  for path in "${paths[@]}"; do
    own+=(-C "$(cd "$(dirname "$path")" && pwd)" "$(basename "$path")")
  done
  run mkdir -p .cache/launch || fail "cannot write to .cache"
  run tar -czf "$ARCHIVE" --exclude=./.git --exclude=./.venv --exclude=./.cache --exclude=./runs \
    --exclude=./build --exclude=./dist --exclude=__pycache__ --exclude=./launch/settings \
    --exclude=./launch/gke/settings \
    . "${own[@]}" || fail "cannot pack the code"
}

# runs/ of an earlier command stays on the worker.
sync_code() {
  local unpack='mkdir -p speechlm && find speechlm -mindepth 1 -maxdepth 1 ! -name runs'
  unpack+=' -exec rm -rf {} + && tar -xzf speechlm.tar.gz -C speechlm'
  pack
  copy_to_workers "$ARCHIVE" speechlm.tar.gz
  on_workers "cannot unpack the code" "$unpack"
}

# setup_workers train|full
setup_workers() {
  say "setting up ($1)"
  on_workers "set-up" "$(quoted bash speechlm/launch/worker/setup.sh "$1" "$bucket")"
}

# start_command WORD...
start_command() {
  on_workers "cannot start" "$(quoted bash speechlm/launch/worker/start.sh "$name" "$bucket" "$@")"
}

stop_command() {
  on_workers "cannot stop" 'bash speechlm/launch/worker/stop.sh'
}

# shellcheck disable=SC2016 # the worker's name
STATUS='[ -d speechlm/launch ] || { echo "host $(hostname) nothing" && exit; }; '
STATUS+='bash speechlm/launch/worker/status.sh'

show_status() {
  read_state ACTIVE
  say "$name: $state"
  [[ $state == ACTIVE ]] || return 0
  ask_workers "$STATUS"
}

# show_logs LINES [-f]: of the first worker; on every worker it is the same file.
show_logs() {
  ask_workers "tail -n $1 ${2:-} launch_run/log.txt"
}

# fetch PATH: a folder of the bucket, or of the first worker's speechlm/.
fetch() {
  local from=$1 into=${results:-runs}
  run mkdir -p "$into"
  if [[ $from == gs://* ]]; then
    cloud "cannot copy $from" gcloud storage rsync --recursive "$from" "$into/$(basename "$from")"
  else
    choose_access
    cloud "cannot copy $from" "${QUEUE[@]}" scp --recurse "$name:speechlm/$from" "$into" \
      "${place[@]}" --node=0 --worker=0 "${access[@]}"
  fi
}

# The nodes go too; what is gone already is no error.
delete_slice() {
  read_state ACTIVE
  while [[ $state == SUSPENDING || $state == DELETING ]]; do
    pause
    read_state ABSENT
  done
  [[ $state != ABSENT ]] || { say "$name is gone" && return; }
  cloud "cannot delete $name" "${QUEUE[@]}" delete "$name" "${place[@]}" --force --quiet
}
