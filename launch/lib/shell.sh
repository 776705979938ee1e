# shellcheck shell=bash
# Messages, dry runs, failures, questions. Sourced, never run.

# shellcheck source=launch/lib/words.sh
. launch/lib/words.sh

dry_run=
patience=1 # how often a question is asked; more than once while a run is watched
last=''    # line of a log that was shown
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

# describe ASSUMED COMMAND...: sets `answer`; ABSENT where there is no such thing. A dry run shows
# the question and goes on as if the answer were ASSUMED.
describe() {
  local assumed=$1 left=$patience
  shift
  if [[ $dry_run ]]; then
    quoted "$@"
    answer=$assumed
    return
  fi
  until answer=$("$@" 2>"$scratch/error"); do
    if grep -q NOT_FOUND "$scratch/error"; then
      answer=ABSENT
      return
    fi
    left=$((left - 1))
    ((left > 0)) || fail "cannot ask for the state of $name: $(reason)"
    pause
  done
}

# The line of gcloud's errors that says why; kubectl's last one does.
reason() {
  local line
  line=$(grep -m 1 'ERROR: ' "$scratch/error" || tail -n 1 "$scratch/error")
  line=${line#*ERROR: }
  line=${line#error: }
  printf '%s' "${line#\(gcloud.*\) }"
}

# show_line LINE: of a log, unless it is the last one shown.
show_line() {
  [[ -z $1 || $1 == "$last" ]] || printf '%s\n' "$1"
  last=$1
}

pause() { [[ $dry_run ]] || sleep "$poll_seconds"; }
