#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on the NVIDIA GPUs of this machine: installs jax[cuda] into .venv and runs `cir-jax train`.
#
# usage: bash launch/local_gpu.sh [--process-per-gpu [--logs DIR] [--grace SECONDS]] [--grow-memory]
#                                 [--dry-run] [--] FLAGS OF cir-jax train
# Example: bash launch/local_gpu.sh --config clip_sum:cirr,stage=1 --init-from RN50x4.pt \
#            --set data.root=DATA
# CUDA_VISIBLE_DEVICES chooses the GPUs; all are used otherwise. CUDA 13 is installed, or CUDA 12 where
# the driver is older than 580. A driver that does not work is named with its remedy.
# --process-per-gpu  one process for each GPU instead of one for all: each decodes images with an
#                    interpreter of its own, which helps where the GPUs wait for images. Process 0
#                    prints here, the others to DIR/process-i.log. Ctrl-C asks all to save and stop; who
#                    has not stopped SECONDS later (120), or at a second Ctrl-C, is killed.
# --grow-memory      takes GPU memory as needed, for GPUs that others use too. By default jax takes
#                    three quarters at the start, which is faster and leaves no gaps.
# --dry-run          prints the commands and runs none; it does not look for GPUs, and shows the processes
#                    of two unless CUDA_VISIBLE_DEVICES names others.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=launch/together.sh
source "$(dirname "${BASH_SOURCE[0]}")/together.sh"

own="--dry-run --process-per-gpu --grow-memory --logs --grace"
each=0 logs="" grace=120
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) DRY_RUN=1 ;;
    --process-per-gpu) each=1 ;;
    --grow-memory) export XLA_PYTHON_CLIENT_PREALLOCATE=false ;;
    --logs | --grace)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --help | -h) usage; exit 0 ;;
    --) own="" && shift && break ;;
    *) break ;;
  esac
  shift
done
check_training "$own" "$@"
[[ "$grace" =~ ^[1-9][0-9]*$ ]] || fail "'$grace' is no number above 0"

# Sets said to a line "index, driver" for each GPU, or stops with what nvidia-smi says and a remedy.
ask_driver() {
  local without="or train on the CPU with cir-jax train"
  command -v nvidia-smi >/dev/null 2>&1 || fail "no nvidia-smi found: install the NVIDIA driver," \
    "start a container with --gpus all, $without"
  said="$(nvidia-smi --query-gpu=index,driver_version --format=csv,noheader 2>&1)" && [[ "$said" =~ ^[0-9] ]] &&
    return
  printf '%s\n' "$said" >&2
  case "$said" in
    *"couldn't communicate"*)
      fail "the driver's kernel module is not loaded; try sudo modprobe nvidia. After an update of the" \
        "kernel install the driver anew and restart; with Secure Boot the module must be signed"
      ;;
    *"version mismatch"*)
      fail "the driver was updated while its old kernel module is loaded; restart the machine"
      ;;
    *"ermission"*) fail "this account may not use the GPUs; see ls -l /dev/nvidia*" ;;
    *"No devices were found"* | "")
      fail "the driver finds no GPU; see lspci | grep -i nvidia, start a container with --gpus all, $without"
      ;;
    *) fail "nvidia-smi does not work; install the NVIDIA driver anew, $without" ;;
  esac
}

extra=cuda gpus=(0 1)
if [ "$DRY_RUN" = 0 ]; then
  ask_driver
  driver="${said%%$'\n'*}"
  driver="${driver##*, }"
  gpus=()
  while IFS=, read -r index _; do gpus+=("$index"); done <<<"$said"
  echo "NVIDIA driver $driver, ${#gpus[@]} GPUs"
  # Oldest drivers of CUDA 13 and 12, as the installation page of jax has them.
  [ "${driver%%.*}" -ge 580 ] || extra=cuda12
  [ "${driver%%.*}" -ge 525 ] || fail "driver $driver is older than 525, which CUDA 12 needs; update it"
fi
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"; fi
prepare_environment "$extra"
execute "$VENV/bin/python" -c 'import sys, jax; d = jax.devices(); print(d); sys.exit(d[0].platform != "gpu")' ||
  fail "jax sees no GPU. CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-(not set)} and" \
    "JAX_PLATFORMS=${JAX_PLATFORMS-(not set)} must not hide them, LD_LIBRARY_PATH=${LD_LIBRARY_PATH-(not set)}" \
    "must not name another CUDA; if all is well, delete $VENV and run this again"
if [ "$each" = 0 ]; then
  execute "$VENV/bin/cir-jax" train "$@"
  exit
fi

find_port
command=("$VENV/bin/cir-jax" train "$@")
start_process() { # I
  local run=exec
  [ "$DRY_RUN" = 0 ] || run=execute
  $run env CUDA_VISIBLE_DEVICES="${gpus[$1]}" CIR_JAX_COORDINATOR="127.0.0.1:$PORT" \
    CIR_JAX_PROCESSES="${#gpus[@]}" CIR_JAX_PROCESS="$1" "${command[@]}"
}
if [ "$DRY_RUN" = 1 ]; then
  for ((i = 0; i < ${#gpus[@]}; i++)); do start_process "$i"; done
  exit
fi
[ -n "$logs" ] || logs="$(mktemp -d)"
run_together "${#gpus[@]}" "$logs" "$grace"
