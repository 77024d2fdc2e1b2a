#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on a Slurm cluster: one process per GPU, found by jax through Slurm's own variables.
#
# usage: bash launch/slurm_gpu.sh [--nodes N] [--gpus GPUS_PER_NODE] [--cpus CPUS_PER_GPU]
#                                 [--time HH:MM:SS] [--partition NAME] [--account NAME] [--dry-run]
#                                 [--] FLAGS OF cir-jax train
# Example: bash launch/slurm_gpu.sh --nodes 2 --gpus 8 --config clip_sum:cirr,stage=1 \
#            --init-from RN50x4.pt --set data.root=DATA
# Before anything is queued, `cir-jax train --dry-run` reads flags and data here, on the CPU, as if this
# machine had all devices of the job. The checkout and its .venv (made by launch/local_gpu.sh or
# pip install -e '.[cuda]') must lie on a file system that all nodes see, and so must workdir. A job
# that is requeued resumes.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

own="--nodes --gpus --cpus --time --partition --account --dry-run"
nodes=1 gpus=8 cpus=8 time=24:00:00 partition="" account=""
while [ $# -gt 0 ]; do
  case "$1" in
    --nodes | --gpus | --cpus | --time | --partition | --account)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage; exit 0 ;;
    --) own="" && shift && break ;;
    *) break ;;
  esac
  shift
done
check_training "$own" "$@"
for number in "$nodes" "$gpus" "$cpus"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || fail "'$number' is no number above 0"
done
need sbatch "run this on a login node of a Slurm cluster"
[ "$DRY_RUN" = 1 ] || [ -x "$VENV/bin/cir-jax" ] ||
  fail "no cir-jax in $VENV; install it there first: pip install -e '.[cuda]'"

# A typo, a batch that does not divide, data that is not there: all of it shows now, not in the job.
execute env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=$((nodes * gpus)) \
  "$VENV/bin/cir-jax" train --dry-run "$@"
command="$(quote "$VENV/bin/cir-jax" train "$@")"
options=(--job-name cir_jax --nodes "$nodes" --ntasks-per-node "$gpus" --gpus-per-node "$gpus"
  --cpus-per-task "$cpus" --time "$time" --requeue --signal TERM@120)
[ -z "$partition" ] || options+=(--partition "$partition")
[ -z "$account" ] || options+=(--account "$account")
# Since Slurm 22.05 srun does not take --cpus-per-task from sbatch; one CPU starves the decoding.
execute sbatch "${options[@]}" \
  --wrap "CIR_JAX_DISTRIBUTED=auto srun --cpus-per-task $cpus --kill-on-bad-exit=1 $command"
