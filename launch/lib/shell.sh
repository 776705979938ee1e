# shellcheck shell=bash
# Messages, dry runs, failures. Sourced, never run.

# shellcheck source=launch/lib/words.sh
. launch/lib/words.sh

dry_run=
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { printf 'launch: %s\n' "$*" >&2; }

# The user's mistake: 2, as in `speechlm`. What the cloud refused: 1.
die() { say "$*" && exit 2; }
fail() { say "$*" && exit 1; }

run() {
  if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# cloud WHAT COMMAND...: runs it in silence; if it fails, one line says what failed and why.
cloud() {
  local what=$1
  shift
  if [[ $dry_run ]]; then
    quoted "$@"
  elif ! "$@" >"$scratch/output" 2>"$scratch/error"; then
    fail "$what: $(reason)"
  fi
}

# The line of gcloud's errors that says why.
reason() {
  local line
  line=$(grep -m 1 'ERROR: ' "$scratch/error" || tail -n 1 "$scratch/error")
  line=${line#*ERROR: }
  printf '%s' "${line#\(gcloud.*\) }"
}

pause() { [[ $dry_run ]] || sleep "$poll_seconds"; }
