#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole method on real images: installs what it needs into .venv and runs `cir-jax demo`.
#
# usage: bash launch/demo.sh [--dry-run] [flags of cir-jax demo, e.g. --seeds 3]
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
prepare_environment demo
execute "$VENV/bin/cir-jax" demo "${flags[@]+"${flags[@]}"}"
