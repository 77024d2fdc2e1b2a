#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lints and tests the project: installs what it needs into .venv, then runs ruff, mypy and pytest.
#
# usage: bash launch/test.sh [--dry-run] [flags of pytest, e.g. -k bank]
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

flags=()
for flag in "$@"; do
  case "$flag" in
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage; exit 0 ;;
    *) flags+=("$flag") ;;
  esac
done
prepare_environment test
cd "$ROOT"
execute "$VENV/bin/ruff" check .
execute "$VENV/bin/ruff" format --check .
execute "$VENV/bin/mypy"
execute "$VENV/bin/python" -m pytest -q -n 2 --dist worksteal --durations=20 "${flags[@]+"${flags[@]}"}"
