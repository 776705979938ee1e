# shellcheck shell=bash
# Sourced before everything else, and plain enough for the bash 3.2 of macOS, which would stop at
# some line of the rest with a syntax error or an unbound variable.
if [ "${BASH_VERSINFO[0]}" -lt 4 ] ||
  { [ "${BASH_VERSINFO[0]}" -eq 4 ] && [ "${BASH_VERSINFO[1]}" -lt 4 ]; }; then
  echo "launch: bash 4.4 or newer is needed, this is $BASH_VERSION (on macOS: brew install bash)" >&2
  exit 2
fi
