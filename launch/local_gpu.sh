#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on the NVIDIA GPUs of this machine: installs jax[cuda] into .venv and runs `cir-jax train`.
#
# usage: bash launch/local_gpu.sh [--dry-run] [--] FLAGS OF cir-jax train
# Example: bash launch/local_gpu.sh --config clip_sum:cirr,stage=1 --init-from RN50x4.pt \
#            --set data.root=DATA
# --dry-run prints the commands and runs none. CUDA_VISIBLE_DEVICES chooses the GPUs; all are used
# otherwise. CUDA 13 is installed, or CUDA 12 where the driver is older than 580.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

own="--dry-run"
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage; exit 0 ;;
    --) own="" && shift && break ;;
    *) break ;;
  esac
  shift
done
check_training "$own" "$@"
extra=cuda
if [ "$DRY_RUN" = 0 ]; then
  driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" ||
    driver=""
  [[ "$driver" =~ ^[0-9]+\. ]] ||
    fail "nvidia-smi finds no GPU; install the NVIDIA driver, or train on the CPU with cir-jax train"
  echo "NVIDIA driver $driver"
  # Oldest drivers of CUDA 13 and 12, as the installation page of jax has them.
  [ "${driver%%.*}" -ge 580 ] || extra=cuda12
  [ "${driver%%.*}" -ge 525 ] || fail "driver $driver is older than 525, which CUDA 12 needs; update it"
fi
prepare_environment "$extra"
# The allocator takes memory as needed: the bank's size is not known to a fixed share.
export XLA_PYTHON_CLIENT_PREALLOCATE="${XLA_PYTHON_CLIENT_PREALLOCATE:-false}"
execute "$VENV/bin/python" -c 'import jax; d = jax.devices(); print(d); assert d[0].platform == "gpu", "jax sees no GPU"'
execute "$VENV/bin/cir-jax" train "$@"
