#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The code path of a pod on one machine: N processes with M CPU devices each, talking over loopback.
#
# usage: bash launch/local_processes.sh [--processes N] [--devices M] [--port P] [--logs DIR]
#                                       [--dry-run] COMMAND [flags of cir-jax COMMAND]
# Example: bash launch/local_processes.sh --processes 2 train --config clip_sum:quicktest
# Process 0 prints here, the others to DIR/process-i.log. If one fails, all are stopped.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

processes=2 devices=2 port=12355 logs=""
while [ $# -gt 0 ]; do
  case "$1" in
    --processes | --devices | --port | --logs)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --dry-run)
      DRY_RUN=1
      shift
      ;;
    --help | -h)
      sed -n '3,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    -*) fail "unknown flag $1; see --help" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || fail "no command of cir-jax given; see --help"
for number in "$processes" "$devices" "$port"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || fail "'$number' is no number above 0"
done

if [ -z "${CIR_JAX:-}" ]; then
  prepare_environment demo
  CIR_JAX="$VENV/bin/cir-jax"
fi
logs="${logs:-$(mktemp -d)}"
mkdir -p "$logs"
pids=()
# shellcheck disable=SC2317,SC2329
stop_all() {
  for pid in "${pids[@]+"${pids[@]}"}"; do kill "$pid" 2>/dev/null || true; done
}
trap stop_all EXIT INT TERM

export CIR_JAX_COORDINATOR="127.0.0.1:$port" CIR_JAX_PROCESSES="$processes"
export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$devices"
for ((i = 0; i < processes; i++)); do
  export CIR_JAX_PROCESS="$i"
  if [ "$DRY_RUN" = 1 ]; then
    echo "CIR_JAX_COORDINATOR=$CIR_JAX_COORDINATOR CIR_JAX_PROCESSES=$processes" \
      "CIR_JAX_PROCESS=$i JAX_PLATFORMS=cpu XLA_FLAGS=$XLA_FLAGS $CIR_JAX $*"
  elif [ "$i" = 0 ]; then
    $CIR_JAX "$@" &
    pids+=($!)
  else
    $CIR_JAX "$@" >"$logs/process-$i.log" 2>&1 &
    pids+=($!)
  fi
done
status=0
for ((i = 0; i < ${#pids[@]}; i++)); do
  # Whichever ends first is looked at first: a failure must not wait for the others.
  wait -n "${pids[@]}" || status=$?
  if [ "$status" != 0 ]; then
    echo "a process ended with status $status; logs: $logs" >&2
    exit "$status"
  fi
done
