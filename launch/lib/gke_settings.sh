# shellcheck shell=bash
# Settings of `gke/submit`, and what follows from the accelerator. Sourced after settings.sh.

# shellcheck disable=SC2034 # what arguments.sh reads
settings_file=launch/gke/settings
SETTINGS+=(region cluster namespace image topology)
region='' cluster='' namespace=default image='' topology=''
service_account=speechlm
LABEL='[a-z0-9]([a-z0-9-]*[a-z0-9])?' # a name of Kubernetes': RFC 1123

# Slices by their chips: https://docs.cloud.google.com/tpu/docs/v4 and v5p, v5e, v6e; checked on
# 2026-11-21 against the tables of https://github.com/AI-Hypercomputer/xpk at 367c838.
declare -A FLAT=([1]=1x1 [4]=2x2 [8]=2x4 [16]=4x4 [32]=4x8 [64]=8x8 [128]=8x16 [256]=16x16)
declare -A CUBES=(
  [4]=2x2x1 [8]=2x2x2 [16]=2x2x4 [32]=2x4x4 [64]=4x4x4 [128]=4x4x8 [256]=4x8x8 [512]=8x8x8
  [768]=8x8x12 [1024]=8x8x16 [2048]=8x16x16
)

check_settings() {
  [[ $project && $region && $cluster && $image && $bucket ]] ||
    die "settings: project, region, cluster, image and bucket are needed (launch/gke/settings.example)"
  check_common_settings
  check_name region "$LABEL" "a region or a zone, e.g. us-west4"
  check_name cluster "$LABEL" "the cluster's name"
  check_name namespace "$LABEL" "a Kubernetes namespace"
  check_name service_account "$LABEL" "a service account of the cluster's, by its name alone"
  check_name image '[a-z0-9][A-Za-z0-9._/:@-]*' "an image, e.g. HOST/PROJECT/speechlm:1"
  plan_slice
  kube=("--context=gke_${project}_${region}_$cluster" "--namespace=$namespace")
}

# Sets `topology`, `hosts` of a slice, `chips_a_host`, and what GKE calls the chip and its machine.
plan_slice() {
  local chip=${accelerator%-*} chips=${accelerator#*-} usual machines
  case $chip in
    v4) label=tpu-v4-podslice machines=ct4p-hightpu ;;
    v5p) label=tpu-v5p-slice machines=ct5p-hightpu ;;
    v5litepod) label=tpu-v5-lite-podslice machines=ct5lp-hightpu ;;
    v6e) label=tpu-v6e-slice machines=ct6e-standard ;;
  esac
  if [[ $chip == v4 || $chip == v5p ]]; then
    chips=$((chips / 2)) # these count cores
    usual=${CUBES[$chips]:-}
  else
    usual=${FLAT[$chips]:-}
  fi
  topology=${topology:-$usual}
  [[ $topology ]] || die "$accelerator: its shape is not known here; give topology=AxB or AxBxC"
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ && $((${topology//x/*})) == "$chips" ]] ||
    die "topology '$topology' is not that of $accelerator ($chips chips)"
  chips_a_host=$((chips < 4 ? chips : 4))
  [[ $topology != 2x4 ]] || chips_a_host=8 # the machines with eight chips, as `launch/run` has them
  hosts=$((chips / chips_a_host))
  machine=$machines-${chips_a_host}t
  ((slices == 1 || hosts > 1)) || die "several slices: each needs more than one host"
}
