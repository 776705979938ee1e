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
