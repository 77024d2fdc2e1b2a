# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with this project and some of its extras.
#
#   prepare_environment EXTRA     makes .venv (or $CIR_JAX_VENV) if there is none, installs the
#                                 project with EXTRA ("demo", "test", ...) if it is not installed
#                                 yet, and sets VENV. With DRY_RUN=1 the commands are printed only.
#   execute COMMAND ...           runs a command, or prints it if DRY_RUN=1
#   usage                         prints the comment at the head of the script
#   need PROGRAM REMEDY           stops with REMEDY if PROGRAM is not on the path
#   check_training OWN ARG ...    stops if the arguments ARG ... of `cir-jax train` name no config, or
#                                 if one of the script's own flags, OWN, stands among them
#   quote ARG ...                 prints the arguments as one line that any shell reads as them
# $PYTHON chooses the Python of a new environment.
#
# A script reads its own flags, which come first, and hands on everything else as it is: from the
# first flag that it does not know, or after `--`.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${CIR_JAX_VENV:-$ROOT/.venv}"
DRY_RUN="${DRY_RUN:-0}"

execute() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@" # one line for each command, also for those of several lines
    printf '\n'
  else
    "$@"
  fi
}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

usage() { sed -n '3,/^[^#]/s/^# \{0,1\}//p' "$0"; }

need() {
  [ "$DRY_RUN" = 1 ] || command -v "$1" >/dev/null 2>&1 || fail "no $1 found; $2"
}

# What cir-jax would say only after an environment is installed, or in a queued job.
check_training() {
  local own=" $1 " given config=0
  shift
  given="${*:+, but $(quote "$@")}"
  while [ $# -gt 0 ]; do
    [[ -z "$1" || "$own" != *" $1 "* ]] || fail "$1 stands after the first flag of cir-jax train;" \
      "write it before, or write -- before all flags of cir-jax train to hand it on"
    case "$1" in
      --config) config=$# ;;
      --config=* | --help | -h) config=2 ;;
    esac
    shift
  done
  [ "$config" != 1 ] || fail "--config needs a value, e.g. --config clip_sum:cirr,stage=1"
  [ "$config" != 0 ] || fail "no --config given to cir-jax train$given; see --help"
}

# Not by printf %q: its $'...' for line breaks and accents is not known to every sh.
quote() {
  local argument mark="'" escaped="'\\''" line=""
  for argument in "$@"; do
    case "$argument" in
      "" | *[!a-zA-Z0-9_./:=,@%+-]*) argument="'${argument//$mark/$escaped}'" ;;
    esac
    line+="${line:+ }$argument"
  done
  printf '%s\n' "$line"
}

# Not a release candidate, as the python3.11 of Ubuntu 22.04 is one.
is_new_enough() {
  command -v "$1" >/dev/null 2>&1 &&
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11, 0, "final"))' >/dev/null 2>&1
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
  elif is_installed "$extra" test; then
    return # [test] contains [demo] and [search-demo]
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
