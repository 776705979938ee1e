# shellcheck shell=bash
# The command line of `run`, `slice` and `gke/submit`. Sourced.

# read_arguments WORD...: options and settings before `--`; sets `verb` and `rest`.
read_arguments() {
  local file=$settings_file own=()
  verb='' rest=()
  while (($#)); do
    case $1 in
      --dry-run) dry_run=yes ;;
      --settings) file=${2:-} && shift ;;
      --) shift && rest=("$@") && break ;;
      -*) die "there is no option $1" ;;
      *=*) own+=("$1") ;;
      *) [[ -z $verb ]] || die "'$1': what belongs to the command goes after --"
        verb=$1 ;;
    esac
    shift
  done
  if [[ -f $file ]]; then
    read_settings "$file"
  elif [[ $file != "$settings_file" ]]; then
    die "there is no $file"
  fi
  local setting
  for setting in "${own[@]}"; do set_setting "command line" "$setting"; done
  check_settings
}
