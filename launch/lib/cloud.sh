# shellcheck shell=bash
# What is asked of Cloud TPU: the request, its workers, files. Sourced.
# The flags stand in tests/launch/flags.json with their source and date.

QUEUE=(gcloud compute tpus queued-resources)

create_command() {
  local command=("${QUEUE[@]}") options=()
  # Named reservations and flex-start are flags of the alpha command only.
  [[ -z $reservation && $tier != flex-start ]] || command=(gcloud alpha "${QUEUE[@]:1}")
  if ((slices == 1)); then
    options+=("--node-id=$name")
  else
    options+=("--node-count=$slices" "--node-prefix=$name")
  fi
  case $tier in
    spot) options+=(--spot) ;;
    reserved) [[ $reservation ]] || options+=(--reserved) ;;
    flex-start) options+=(--provisioning-model=flex-start "--max-run-duration=${max_run_hours}h") ;;
  esac
  if [[ $reservation ]]; then options+=("--reservation=$reservation"); fi
  [[ -z $queue_hours ]] || options+=("--valid-until-duration=${queue_hours}h")
  [[ -z $network ]] || options+=("--network=$network")
  [[ -z $subnetwork ]] || options+=("--subnetwork=$subnetwork")
  [[ $internal_ips == no ]] || options+=(--internal-ips)
  [[ -z $service_account ]] || options+=("--service-account=$service_account")
  create=("${command[@]}" create "$name" "${place[@]}" "--accelerator-type=$accelerator"
    "--runtime-version=$runtime" "${options[@]}")
}

# node_names: those that `create` gave.
node_names() {
  local index
  if ((slices == 1)); then echo "$name" && return; fi
  for ((index = 0; index < slices; index++)); do echo "$name-$index"; done
}

# Sets `state`: that of the request, or LOST, or STARTING, where a node of an active one is.
# A preempted node may leave its request ACTIVE for a while.
read_state() {
  local node
  describe "$1" "${QUEUE[@]}" describe "$name" "${place[@]}" '--format=value(state.state)'
  state=$answer
  [[ $state == ACTIVE ]] || return 0
  for node in $(node_names); do
    describe READY gcloud compute tpus tpu-vm describe "$node" "${place[@]}" '--format=value(state)'
    case $answer in
      READY) ;;
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING) state=STARTING ;;
      *) state=LOST && return ;;
    esac
  done
}

why_failed() {
  describe '' "${QUEUE[@]}" describe "$name" "${place[@]}" \
    '--format=value(state.failedData.error.message)'
  printf '%s' "${answer:-no reason given}"
}

# Where a command goes: all workers of all slices, or the first.
everywhere() { where=(--node=all --worker=all); }
first_worker() { where=(--node=0 --worker=0); }

# Sets `access`: of workers that have no address of their own, too; no question waits for an answer.
choose_access() {
  access=(--quiet)
  [[ $internal_ips == no ]] || access+=(--tunnel-through-iap)
}

# ask_workers COMMAND: runs it on the workers; prints what they print.
ask_workers() {
  choose_access
  run "${QUEUE[@]}" ssh "$name" "${place[@]}" "${where[@]}" "${access[@]}" "--command=$1"
}

# on_workers WHAT COMMAND: the same; a failure ends the script with one line that names the worker.
on_workers() {
  if [[ $dry_run ]]; then
    ask_workers "$2"
  elif ! ask_workers "$2" >"$scratch/output" 2>"$scratch/error"; then
    fail "$1: $(which_worker)"
  fi
}

# A script of ours says why in a line that starts with "worker"; otherwise those are named that do
# not answer.
which_worker() {
  local unreachable
  if grep -h -m 1 '^worker ' "$scratch/output" "$scratch/error"; then return; fi
  unreachable=$(find_unreachable)
  if [[ $unreachable ]]; then
    printf 'cannot reach %s' "$unreachable"
  else
    reason
  fi
}

reachable() {
  local where=("--node=$1" "--worker=$2")
  ask_workers true >/dev/null 2>&1
}

find_unreachable() {
  local node index=0 worker count
  for node in $(node_names); do
    count=$(gcloud compute tpus tpu-vm describe "$node" "${place[@]}" \
      '--format=value(networkEndpoints[].ipAddress)' 2>/dev/null | tr ';, ' '\n' | grep -c .)
    for ((worker = 0; worker < count; worker++)); do
      reachable "$index" "$worker" || echo "worker $worker of slice $index"
    done
    index=$((index + 1))
  done | paste -s -d , - | sed 's/,/, /g'
}

copy_to_workers() {
  choose_access
  local copy=("${QUEUE[@]}" scp "$1" "$name:$2" "${place[@]}" "${where[@]}" "${access[@]}")
  if [[ $dry_run ]]; then
    quoted "${copy[@]}"
  elif ! "${copy[@]}" >"$scratch/output" 2>"$scratch/error"; then
    fail "cannot copy the code: $(which_worker)"
  fi
}
