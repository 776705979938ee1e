# shellcheck shell=bash
# What is asked of a cluster: the JobSet, its pods, their logs. Sourced.
# The flags stand in tests/launch/flags.json with their source and date.

JOBSET='custom-columns=STATE:.status.terminalState,AGAIN:.status.restarts,'
JOBSET+='DELETED:.metadata.deletionTimestamp,SUSPENDED:.spec.suspend,RUNS:.metadata.annotations.speechlm/runs'
FAILURE='custom-columns=WHY:.status.conditions[?(@.type=="Failed")].message'
PODS='custom-columns=POD:.metadata.name,PHASE:.status.phase,'
PODS+='EXIT:.status.containerStatuses[?(@.name=="train")].state.terminated.exitCode,'
PODS+='WAITS:.status.containerStatuses[?(@.name=="train")].state.waiting.reason,'
PODS+='WHY:.status.conditions[?(@.type=="PodScheduled")].message'

# Makes the cluster known to kubectl; its name there is what `kube` says.
connect() {
  cloud "cluster $cluster" gcloud container clusters get-credentials "$cluster" \
    "--location=$region" "--project=$project"
}

# Sets `state` (ABSENT, DELETING, SUSPENDED, Completed, Failed or Active), `again` (how often all
# pods were started again) and `theirs` (what it runs). A dry run assumes the state that is given.
read_jobset() {
  local deleted suspended
  describe "$1" kubectl get jobset "$name" "${kube[@]}" --ignore-not-found --no-headers "--output=$JOBSET"
  if [[ $dry_run || -z $answer ]]; then
    state=${answer:-ABSENT} again=0 theirs=''
    return
  fi
  read -r state again deleted suspended theirs <<<"$answer"
  [[ $again != '<none>' ]] || again=0
  if [[ $deleted != '<none>' ]]; then
    state=DELETING
  elif [[ $state == '<none>' ]]; then
    state=Active
    [[ $suspended != true ]] || state=SUSPENDED
  fi
}

# Sets `answer`: a line a pod.
read_pods() {
  describe '' kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name" "${kube[@]}" \
    --no-headers "--output=$PODS"
}

why_jobset_failed() {
  describe '' kubectl get jobset "$name" "${kube[@]}" --no-headers "--output=$FAILURE"
  printf '%s' "${answer:-no reason given}"
}

# The first host's log goes by what a pod is, because its name changes with every start.
first_pod() {
  printf -- '--selector=jobset.sigs.k8s.io/jobset-name=%s' "$name"
  printf ',jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0'
}

# pod_log WHICH LINES [-f]: WHICH is a pod's name or a selector.
pod_log() {
  run kubectl logs "$1" "${kube[@]}" --container=train "--tail=$2" ${3:+--follow}
}

# Starts what the manifest says, once; what has ended gives way to it.
create_jobset() {
  read_jobset ''
  while [[ $state == DELETING ]]; do
    pause
    read_jobset ''
  done
  case $state in
    ABSENT) ;;
    Completed | Failed)
      say "$name is there and has ended ($state); it is started anew"
      delete_jobset
      ;;
    *)
      [[ $theirs == "$runs" ]] || fail "$name runs something else: $theirs (launch/gke/submit delete ends it)"
      say "the command runs already" && return
      ;;
  esac
  say "asking for $slices x $accelerator: a node pool of $hosts x $machine, topology $topology, for each"
  write_manifest
  cloud "cannot start $name" kubectl apply "${kube[@]}" "--filename=$MANIFEST"
}

# Waits until the pods are gone too, which are given time to save.
delete_jobset() {
  cloud "cannot delete $name" kubectl delete jobset "$name" "${kube[@]}" --ignore-not-found \
    --cascade=foreground
}

show_jobset() {
  read_jobset Active
  say "$name: $state${theirs:+, $again restarts: $theirs}"
  [[ $state != ABSENT ]] || return 0
  read_pods
  [[ -z $answer ]] || printf '%s\n' "$answer"
}
