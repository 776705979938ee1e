# shellcheck shell=bash
# Follows a JobSet until it ends. JobSet itself brings it back where a node is lost. Sourced.

MISSES=5 # polls in a row that the cluster, or an image, may leave without an answer

# Returns when the command is done; any other end is the script's.
watch_jobset() {
  local said='' known=$again refused=0
  patience=$MISSES
  while true; do
    pause
    read_jobset Active
    case $state in
      Completed) return ;;
      Failed) end_with_failure ;;
      ABSENT | DELETING) end_deleted ;;
    esac
    say_restarts
    read_pods
    say_pods
    check_image
    show_line "$(pod_log "$(first_pod)" 1 2>/dev/null | tail -n 1)"
    [[ -z $dry_run ]] || return 0
  done
}

say_restarts() {
  if ((again > known)); then
    say "$(date +%T) JobSet starts all pods again ($again of $restarts)"
    known=$again
  fi
}

# How many are in which state, and why some wait; said once, until it changes.
say_pods() {
  local line why
  line=$(awk '{ count[$2]++ } END { for (phase in count) print count[phase], phase }' <<<"$answer" | sort)
  line=${line//$'\n'/, }
  # POD PHASE EXIT WAITS WHY, of which one of the last two says something
  why=$(awk '$2 == "Pending" { $1 = $2 = $3 = ""; print; exit }' <<<"$answer")
  read -r why <<<"${why//<none>/}"
  [[ $state != SUSPENDED ]] || line='suspended: a queue of the cluster holds it'
  line+=${why:+: $why}
  [[ -z $line || $line == "$said" ]] || say "$(date +%T) $line"
  said=$line
}

# The cluster tries for ever to have an image that is not there.
check_image() {
  local refusal
  refusal=$(grep -o -m 1 -E 'ErrImagePull|ImagePullBackOff|InvalidImageName' <<<"$answer" || true)
  refused=$((${#refusal} ? refused + 1 : 0))
  ((refused < MISSES)) ||
    fail "$refusal: cannot pull $image; launch/gke/submit delete, then again with another image="
}

end_deleted() {
  say "$name was deleted: the command is stopped; submitted again, it goes on from its last checkpoint"
  exit 75
}

# The code of a pod that ended by itself goes before those that were stopped (75, 143) or followed
# another host down (137).
end_with_failure() {
  local pod code
  read_pods
  read -r pod code < <(awk '$3 ~ /^[0-9]+$/ && $3 !~ /^(0|75|137|143)$/ { print $1, $3 }' <<<"$answer") ||
    fail "$name failed: $(why_jobset_failed)"
  pod_log "$pod" 20 >&2 || true
  say "the command ended with exit code $code ($pod); submitted again, it starts anew"
  exit "$code"
}
