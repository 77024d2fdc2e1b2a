#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The job that launch/slurm_gpu.sh queues: one task per GPU, queued again when it was interrupted.
#
# usage: sbatch ... launch/slurm_job.sh [--dry-run] job ROOT LOGS RESTARTS CPUS REQUEST
#               OPTION OF sbatch ... -- COMMAND ...
#   job   runs COMMAND as one task per GPU. Task I prints to LOGS/JOB/task-I.log, with its status in
#         LOGS/JOB/task-I.status. Status 75 (interrupted, the same command resumes) or the time limit
#         queue the job again, RESTARTS times in all; 0, 2 and any other status do not. At the end
#         the task that failed first is named with its last lines
#   task  one task of it
# --dry-run prints the command of the tasks and runs none.
# sbatch copies this file elsewhere, so it is told where the checkout is: ROOT.
set -euo pipefail
case "${1:-}" in
  --dry-run) DRY_RUN=1 && shift ;;
esac
case "${1:-}" in
  --help | -h | "") set -- help "$(dirname "${BASH_SOURCE[0]}")/.." ;;
esac
action="$1" root="$2"
shift 2
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
[ "$action" != help ] || { usage; exit 0; }
here="$root/launch/slurm_job.sh"

task() { # FOLDER REQUEST COMMAND ...
  local folder="$1" request="$2" pid status=0
  shift 2
  # Slurm signals every process of the step, this one too; a second signal would end the run unsaved.
  trap : TERM INT HUP
  if [ "$request" = gpus-per-task ]; then
    # Each task sees one GPU only, and not under the number that jax expects of a task of Slurm.
    CIR_JAX_COORDINATOR="$(scontrol show hostnames "$SLURM_STEP_NODELIST" | sed -n 1p)"
    CIR_JAX_COORDINATOR+=":$((20000 + SLURM_JOB_ID % 12000))"
    export CIR_JAX_COORDINATOR CIR_JAX_PROCESSES="$SLURM_NTASKS" CIR_JAX_PROCESS="$SLURM_PROCID"
  else
    export CIR_JAX_DISTRIBUTED=auto
  fi
  "$@" &
  pid=$!
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal ends `wait`, not the run
    wait "$pid" || true
  done
  status=0
  wait "$pid" || status=$?
  echo "$(date +%s.%N) $status $(hostname)" >"$folder/task-$SLURM_PROCID.status"
  # One task that has saved must not end the others, as --kill-on-bad-exit would, while they save.
  [ "$status" != 75 ] || status=0
  exit "$status"
}

# RUNNING while the job is let be; CANCELLED after scancel, TIMEOUT at the time limit.
job_state() {
  scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'
}

# Sets first (number, status and host of the task that failed first), interrupted and noted.
read_statuses() { # FOLDER
  local file time status host earliest=""
  first="" interrupted=0 noted=0
  for file in "$1"/task-*.status; do
    [ -f "$file" ] || continue
    read -r time status host <"$file"
    noted=$((noted + 1))
    case "$status" in
      0) ;;
      75) interrupted=1 ;;
      *)
        # By text, which is as long for all times of today.
        if [ -z "$earliest" ] || [[ "$time" < "$earliest" ]]; then
          earliest="$time"
          file="${file##*/task-}"
          first="${file%.status} $status $host"
        fi
        ;;
    esac
  done
}

# A node that is lost takes its tasks with it; those of other nodes notice within two minutes and end
# with 1. Slurm marks the node a little later, so this waits for it; returns 0 once it has.
lost_node() {
  local tasks="${SLURM_NTASKS:-$((${SLURM_JOB_NUM_NODES:-1} * ${SLURM_NTASKS_PER_NODE:-1}))}"
  local seconds=0 limit="${CIR_JAX_NODE_WAIT:-240}"
  [ "$noted" -lt "$tasks" ] || return 1
  while true; do
    if scontrol show node "${SLURM_JOB_NODELIST:-}" 2>/dev/null |
      grep -E 'State=[A-Z+]*(DOWN|FAIL|NOT_RESPONDING|\*)' >/dev/null; then
      return 0
    fi
    [ "$seconds" -lt "$limit" ] || return 1
    sleep 10
    seconds=$((seconds + 10))
  done
}

queue_again() { # WHY
  local left=$((restarts - ${SLURM_RESTART_COUNT:-0}))
  if [ "$left" -le 0 ]; then
    echo "$1, but it was queued again $restarts times already; the same command resumes it" >&2
    exit 75
  fi
  echo "$1; the job is queued again and resumes"
  # Under the same number, with the same log; where the cluster allows none of that, a new job.
  if ! scontrol requeue "$SLURM_JOB_ID"; then
    sbatch "${options[@]}" "$here" job "$root" "$logs" $((left - 1)) "$cpus" "$request" \
      "${options[@]}" -- "${command[@]}"
  fi
  exit 0
}

job() { # LOGS RESTARTS CPUS REQUEST OPTION ... -- COMMAND ...
  logs="$1" restarts="$2" cpus="$3" request="$4"
  shift 4
  options=()
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  command=("$@")
  local status=0 pid ended="" folder="$logs/${SLURM_JOB_ID:-JOB}" number code host
  # Since Slurm 22.05 srun does not take --cpus-per-task from sbatch; one CPU starves the decoding.
  local step=(srun --cpus-per-task "$cpus" --kill-on-bad-exit=1 --open-mode=append
    --output "$folder/task-%t.log" bash "$here" task "$root" "$folder" "$request" "${command[@]}")
  if [ "$DRY_RUN" = 1 ]; then
    execute "${step[@]}"
    return
  fi
  mkdir -p "$folder"
  rm -f "$folder"/task-*.status
  trap 'ended=1' TERM # scancel, or the time limit after --signal was of no use
  "${step[@]}" &
  pid=$!
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
  status=0
  wait "$pid" || status=$?
  read_statuses "$folder"
  case "$(job_state)" in
    CANCELLED*)
      echo "cancelled; the same command resumes the run" >&2
      exit 75
      ;;
    TIMEOUT*) queue_again "the time limit came before all was saved" ;;
    PREEMPTED*) exit 75 ;; # Slurm queues it again by itself
  esac
  if [ -n "$first" ]; then
    [ "${first#* 2 }" != "$first" ] || ! lost_node || queue_again "a node was lost"
    read -r number code host <<<"$first"
    echo "task $number on $host failed first, with status $code; the end of $folder/task-$number.log:" >&2
    tail -n 20 "$folder/task-$number.log" >&2 || true
    exit "$code"
  fi
  [ "$interrupted" = 0 ] || queue_again "the run was interrupted"
  if [ "$status" != 0 ] || [ "$noted" != "${SLURM_NTASKS:-$noted}" ]; then
    echo "srun ended with status $status, $noted of ${SLURM_NTASKS:-?} tasks said how${ended:+, after TERM}" >&2
    [ "$status" != 0 ] || status=1
  fi
  exit "$status"
}

case "$action" in
  job | task) "$action" "$@" ;;
  *) fail "unknown action $action; see --help" ;;
esac
