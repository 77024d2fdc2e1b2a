# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with this project and some of its extras.
#
#   prepare_environment EXTRAS    makes .venv (or $CIR_JAX_VENV) if there is none, installs the
#                                 project with EXTRAS ("demo", "test", ...) if it is not installed
#                                 yet, and sets VENV. With DRY_RUN=1 the commands are printed only.
#   execute COMMAND ...           runs a command, or prints it if DRY_RUN=1

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

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python"
}

prepare_environment() {
  local extras="$1" python stamp wanted
  stamp="$VENV/.cir_jax-$extras"
  if [ ! -x "$VENV/bin/python" ]; then
    python="$(find_python)"
    execute "$python" -m venv "$VENV"
  fi
  # The stamp is written last, so an install that was cut off is done again.
  wanted="$(cksum <"$ROOT/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    execute "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet \
      --editable "${ROOT}[$extras]"
    [ "$DRY_RUN" = 1 ] || echo "$wanted" >"$stamp"
  fi
}
