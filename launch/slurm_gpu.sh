#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on a Slurm cluster: one process per GPU, queued again until the run is finished.
#
# usage: bash launch/slurm_gpu.sh [--nodes N] [--gpus GPUS_PER_NODE] [--cpus CPUS_PER_GPU]
#                                 [--time HH:MM:SS] [--grace SECONDS] [--restarts N]
#                                 [--request gpus-per-node | gres | gpus-per-task] [--gpu-type TYPE]
#                                 [--partition NAME] [--account NAME] [--logs DIR] [--dry-run]
#                                 [--] FLAGS OF cir-jax train
# Example: bash launch/slurm_gpu.sh --nodes 2 --gpus 8 --config clip_sum:cirr,stage=1 \
#            --init-from RN50x4.pt --set data.root=DATA
# Before anything is queued, `cir-jax train --dry-run` reads flags and data here, on the CPU, as if this
# machine had all devices of the job. The checkout and its .venv (made by launch/local_gpu.sh or
# pip install -e '.[cuda]') must lie on a file system that all nodes see, and so must workdir and DIR
# (slurm-logs). The run is asked to save SECONDS (300) before the time limit; then, and after every
# other interruption (exit status 75), the job queues itself again, N times at most (50). It does not
# after status 0, 2 or a crash. Each task has its log, DIR/JOB/task-I.log; the job's own output,
# DIR/JOB.out, ends with the task that failed first.
# --request says how the cluster wants to be asked for GPUs; jax itself finds its way if every task
# sees all GPUs of its node, which gpus-per-node and gres give.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

own="--nodes --gpus --cpus --time --grace --restarts --request --gpu-type --partition --account --logs"
own+=" --dry-run"
nodes=1 gpus=8 cpus=8 time=24:00:00 grace=300 restarts=50 request=gpus-per-node gpu_type=""
partition="" account="" logs=slurm-logs
while [ $# -gt 0 ]; do
  case "$1" in
    --nodes | --gpus | --cpus | --time | --grace | --restarts | --request | --gpu-type | \
      --partition | --account | --logs)
      [ $# -ge 2 ] || fail "$1 needs a value"
      flag="${1#--}"
      printf -v "${flag//-/_}" '%s' "$2"
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
for number in "$nodes" "$gpus" "$cpus" "$grace" "$restarts"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || fail "'$number' is no number above 0"
done
case "$request" in
  gpus-per-node) ask=(--gpus-per-node "${gpu_type:+$gpu_type:}$gpus") ;;
  gres) ask=(--gres "gpu:${gpu_type:+$gpu_type:}$gpus") ;;
  gpus-per-task) ask=(--gpus-per-task "${gpu_type:+$gpu_type:}1") ;;
  *) fail "--request $request is none of gpus-per-node, gres, gpus-per-task" ;;
esac
[[ "$logs" == /* ]] || logs="$PWD/$logs"
need sbatch "run this on a login node of a Slurm cluster"
[ "$DRY_RUN" = 1 ] || [ -x "$VENV/bin/cir-jax" ] ||
  fail "no cir-jax in $VENV; install it there first: pip install -e '.[cuda]'"

# A typo, a batch that does not divide, data that is not there: all of it shows now, not in the job.
execute env JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=$((nodes * gpus)) \
  "$VENV/bin/cir-jax" train --dry-run "$@"
execute mkdir -p "$logs" # sbatch opens its output there
options=(--job-name cir_jax --nodes "$nodes" --ntasks-per-node "$gpus" "${ask[@]}"
  --cpus-per-task "$cpus" --time "$time" --requeue --signal "TERM@$grace" --open-mode=append
  --output "$logs/%j.out")
[ -z "$partition" ] || options+=(--partition "$partition")
[ -z "$account" ] || options+=(--account "$account")
execute sbatch "${options[@]}" "$ROOT/launch/slurm_job.sh" job "$ROOT" "$logs" "$restarts" "$cpus" \
  "$request" "${options[@]}" -- "$VENV/bin/cir-jax" train "$@"
