# shellcheck shell=bash
# Follows a run until it ends, and brings it back where the slice was taken. Sourced.

MISSES=5 # polls in a row that the workers, or the cloud, may leave without an answer

# Sets `outcome`: the command's exit code, or `lost` where the slice is.
watch_run() {
  local misses=0
  patience=$MISSES
  outcome=''
  while [[ -z $outcome ]]; do
    pause
    read_state ACTIVE
    if is_lost; then
      outcome=lost
    elif [[ $dry_run ]]; then
      ask_workers "$STATUS"
      outcome=0
    elif ask_workers "$STATUS" >"$scratch/output" 2>"$scratch/error"; then
      misses=0
      read_outcome
      show_progress
    else
      misses=$((misses + 1))
      ((misses < MISSES)) || fail "the run cannot be watched: $(which_worker)"
    fi
  done
}

is_lost() { [[ $state =~ ^(SUSPENDING|SUSPENDED|DELETING|LOST|ABSENT)$ ]]; }

# Workers print `host NAME running`, `... exit CODE` or `... nothing`. While one runs, the run does;
# then a code that says something goes before those of hosts that were stopped or that followed
# another down.
read_outcome() {
  local codes
  if grep -q '^host [^ ]* running$' "$scratch/output"; then return; fi
  codes=$(awk '$1 == "host" && $3 == "exit" { print $4 }' "$scratch/output" | sort -n -u)
  if [[ -z $codes ]] || grep -q '^host [^ ]* nothing$' "$scratch/output"; then
    outcome=lost # a new machine, which knows of no run
  else
    outcome=$(grep -v -x -e 0 -e 75 -e 137 <<<"$codes" | head -n 1) ||
      outcome=$(grep -x -e 75 -e 137 <<<"$codes" | head -n 1) || outcome=0
  fi
}

show_progress() {
  show_line "$(sed -n 's/^log //p' "$scratch/output" | head -n 1)"
}

# A command that runs is left alone: its code does not change under it.
bring_up() {
  create_slice
  wait_for_slice || fail "$name was taken before it was used"
  if runs_already; then return; fi
  sync_code
  setup_workers "$packages"
  start_command "${command[@]}"
}

runs_already() {
  local theirs
  [[ -z $dry_run ]] && ask_workers "$STATUS" >"$scratch/output" 2>"$scratch/error" || return 1
  grep -q '^host [^ ]* running$' "$scratch/output" || return 1
  theirs=$(sed -n 's/^command //p' "$scratch/output" | head -n 1)
  [[ $theirs == "$(quoted "${command[@]}")" ]] ||
    fail "$name runs another command: $theirs (launch/slice stop ends it)"
  if grep -q -E '^host [^ ]* (nothing|exit [0-9]+)$' "$scratch/output"; then
    say "the command runs on some hosts only; it is stopped and started on all"
    stop_command
    return 1
  fi
  say "the command runs already"
}

count_loss() {
  losses=$((losses + 1))
  ((losses <= restarts)) || fail "$1; that was one more than restarts=$restarts"
  say "$(date +%T) $1; again ($losses of $restarts)"
}

# 75: stopped by a signal after saving. 137: killed, or followed another host down. Both go on from
# the last checkpoint with the same command.
run_to_the_end() {
  local code
  losses=0
  while true; do
    # A failure on the way up that the loss of the slice explains is a loss.
    set +e
    (set -e && bring_up)
    code=$?
    set -e
    if ((code == 0)); then
      watch_run
    else
      read_state ABSENT
      is_lost && ((code == 1)) && [[ $state != ABSENT ]] || exit "$code"
      outcome=lost
    fi
    case $outcome in
      0) return ;;
      lost) count_loss "$name was taken ($state)" ;;
      75 | 137) count_loss "the command was stopped (exit code $outcome)" ;;
      *) end_with "$outcome" ;;
    esac
  done
}

end_with() {
  show_logs 20 >&2 || true
  say "the command ended with exit code $1; the slice is kept (launch/slice delete)"
  exit "$1"
}
