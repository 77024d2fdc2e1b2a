#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on the NVIDIA GPUs of this machine: installs jax[cuda] into .venv and runs `cir-jax train`.
#
# usage: bash launch/local_gpu.sh [--dry-run] --config NAME[:ARG] [--set key=value ...]
# Example: bash launch/local_gpu.sh --config clip_sum:fashioniq,stage=1 --set data.root=DATA
# CUDA_VISIBLE_DEVICES chooses the GPUs; all are used otherwise. CUDA 13 is installed, or CUDA 12 where
# the driver is older than 580.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) DRY_RUN=1 ;;
    --help | -h)
      sed -n '3,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      training_flag "$@"
      shift $((TAKEN - 1))
      ;;
  esac
  shift
done
[ ${#flags[@]} -gt 0 ] || fail "no --config given; see --help"
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
execute "$VENV/bin/cir-jax" train "${flags[@]}"
