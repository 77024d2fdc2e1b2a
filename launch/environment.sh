# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with this project and some of its extras.
#
#   prepare_environment EXTRA     makes .venv (or $CIR_JAX_VENV) if there is none, installs the
#                                 project with EXTRA ("demo", "test", ...) if it is not installed
#                                 yet, and sets VENV. With DRY_RUN=1 the commands are printed only.
#   execute COMMAND ...           runs a command, or prints it if DRY_RUN=1
#   need PROGRAM REMEDY           stops with REMEDY if PROGRAM is not on the path
#   training_flag "$@"            appends a flag of `cir-jax train` to the array `flags`, and sets
#                                 TAKEN to the number of arguments it was; stops if it is none
# $PYTHON chooses the Python of a new environment.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${CIR_JAX_VENV:-$ROOT/.venv}"
DRY_RUN="${DRY_RUN:-0}"

execute() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

need() {
  [ "$DRY_RUN" = 1 ] || command -v "$1" >/dev/null 2>&1 || fail "no $1 found; $2"
}

# shellcheck disable=SC2034  # TAKEN is for the caller
training_flag() {
  TAKEN=1
  case "$1" in
    --config | --set)
      [ $# -ge 2 ] || fail "$1 needs a value"
      flags+=("$1" "$2")
      TAKEN=2
      ;;
    --config.*=*) flags+=("$1") ;;
    *) fail "unknown flag $1; see --help" ;;
  esac
}

is_new_enough() {
  command -v "$1" >/dev/null 2>&1 &&
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.11 or newer; set another, or none"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.13 python3 python; do
    if is_new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python"
}

# A moved checkout, another Python and a changed pyproject.toml each need a new install.
installed_state() {
  { cat "$ROOT/pyproject.toml" && echo "$ROOT" && "$VENV/bin/python" -V; } 2>&1 | cksum
}

is_installed() {
  local stamp
  for stamp in "$@"; do
    [ "$(cat "$VENV/.cir_jax-$stamp" 2>/dev/null)" != "$(installed_state)" ] || return 0
  done
  return 1
}

prepare_environment() {
  local extra="$1" python clear=()
  if [ ! -x "$VENV/bin/python" ]; then
    python="$(find_python)"
    # Links to a Python that was removed are not replaced unless the dead environment goes.
    [ ! -f "$VENV/pyvenv.cfg" ] || clear=(--clear)
    execute "$python" -m venv ${clear[@]+"${clear[@]}"} "$VENV"
  elif [ "$extra" = demo ] && is_installed demo test; then
    return # [test] contains [demo]
  elif is_installed "$extra"; then
    return
  fi
  # An environment whose making was cut off has no pip yet; others are made without it.
  if [ "$DRY_RUN" = 0 ] && ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    "$VENV/bin/python" -m ensurepip >/dev/null ||
      fail "$VENV has no pip; delete that folder, install your system's python3-venv, and run again"
  fi
  execute "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet \
    --editable "${ROOT}[$extra]"
  # Written last, so that an install that was cut off is done again.
  [ "$DRY_RUN" = 1 ] || installed_state >"$VENV/.cir_jax-$extra"
}
