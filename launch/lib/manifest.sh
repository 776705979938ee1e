# shellcheck shell=bash
# From settings and the user's command to the JobSet that does it. Sourced.

MANIFEST=.cache/launch/jobset.yaml

# plan_pods WORD...: sets `runs`, by which a JobSet is known again, and `manifest`.
plan_pods() {
  command=("$@")
  if [[ $1 == speechlm && ${2:-} == train ]]; then
    plan_training "$@"
  elif [[ $1 == speechlm ]]; then
    one_host || die "speechlm ${2:-} is a program of one host: v5litepod-8, v6e-8, v4-8 or v5p-8"
  fi
  check_gs_words
  runs="$slices x $accelerator, $image: $(quoted "${command[@]}")"
  runs=${runs//[[:cntrl:]]/ }
  fill_in_manifest
}

# Every text goes in as a YAML string, every number as it was checked; what is filled in is not read again.
fill_in_manifest() {
  local -A blank=()
  local words key left options
  mounted "$bucket" /bucket "${command[@]}"
  for key in name runs service_account label topology image; do blank[$key]=$(as_yaml "${!key}"); done
  for key in restarts slices hosts chips_a_host; do blank[$key]=${!key}; done
  blank[words]=$(yaml_list "                    " "${words[@]}")
  blank[bucket_name]=$(as_yaml "${bucket#gs://}")
  # The pod's user, because the mount is root's otherwise.
  printf -v options '%s,' "${MOUNT_OPTIONS[@]}" uid=1000 gid=1000
  blank[mount_options]=$(as_yaml "${options%,}")
  blank[host_network]=false blank[dns_policy]=ClusterFirst blank[requests]='{}'
  if ((slices > 1)); then blank[host_network]=true blank[dns_policy]=ClusterFirstWithHostNet; fi
  # A node whose disk is too small for the cache of rows is none for this pod.
  [[ -z $disk_gb ]] || blank[requests]="{ephemeral-storage: ${disk_gb}G}"
  left=$(grep -v '^#' launch/gke/jobset.yaml) manifest=''
  while [[ $left == *'{{'* ]]; do
    manifest+=${left%%'{{'*} left=${left#*'{{'}
    manifest+=${blank[${left%%'}}'*}]} left=${left#*'}}'}
  done
  manifest+=$left
}

# A string between double quotes, in which YAML reads back what was given.
as_yaml() {
  local text=$1 code byte
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  for code in {1..31} 127; do
    printf -v byte '%b' "\\x$(printf %x "$code")"
    [[ $text != *"$byte"* ]] || text=${text//"$byte"/$(printf '\\x%02x' "$code")}
  done
  printf '"%s"' "$text"
}

# yaml_list INDENT WORD...
yaml_list() {
  local indent=$1 word
  shift
  for word in "$@"; do printf '\n%s- %s' "$indent" "$(as_yaml "$word")"; done
}

# Where it can be read again.
write_manifest() {
  if [[ $dry_run ]]; then
    printf "mkdir -p %s\ncat >%s <<'YAML'\n%s\nYAML\n" "${MANIFEST%/*}" "$MANIFEST" "$manifest"
  else
    mkdir -p "${MANIFEST%/*}"
    printf '%s\n' "$manifest" >"$MANIFEST"
  fi
}
