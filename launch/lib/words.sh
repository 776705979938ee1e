# shellcheck shell=bash
# Sourced here and on the workers.

# Words as a shell reads them back; plain words stay as they are.
quoted() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s\n' "${line# }"
}

# value_of OPTION WORD...: what follows it.
value_of() {
  local option=$1
  shift
  while (($#)); do
    case $1 in
      "$option") echo "${2:-}" && return ;;
      "$option"=*) echo "${1#*=}" && return ;;
    esac
    shift
  done
}

# mounted BUCKET FOLDER WORD...: sets `words`, in which gs://BUCKET/... is the folder where the
# bucket is mounted. With --disk-gb, speechlm reads the rows of data.mixture from gs:// itself.
mounted() {
  local bucket=$1 folder=$2 word own
  shift 2
  own=$(value_of --disk-gb "$@")
  words=()
  for word in "$@"; do
    [[ -z $bucket || ($own && $word == data.mixture=gs://*) ]] || word=${word//"$bucket/"/"$folder/"}
    words+=("$word")
  done
}

# How the bucket is mounted. On the machines of TPUs gcsfuse remembers what it has seen for ever, which is
# for a machine that is alone: here hosts wait for each other's files. Folders of a bucket without a
# hierarchical namespace are renamed file by file, up to this many, where nothing says so: not at all.
# https://github.com/GoogleCloudPlatform/gcsfuse/blob/7b39292/cfg/params.yaml (2026-08-20), by flag.
# shellcheck disable=SC2034 # of manifest.sh, and of worker/setup.sh
MOUNT_OPTIONS=(
  implicit-dirs rename-dir-limit=200000 metadata-cache-ttl-secs=5 metadata-cache-negative-ttl-secs=0
)
