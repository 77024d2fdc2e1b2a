#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The code path of a pod on one machine: N processes with M CPU devices each, talking over loopback.
#
# usage: bash launch/local_processes.sh [--processes N] [--devices M] [--port P] [--logs DIR]
#                                       [--grace SECONDS] [--dry-run] COMMAND [flags of COMMAND]
# Example: bash launch/local_processes.sh --processes 2 train --config clip_sum:quicktest
# Process 0 prints here, the others to DIR/process-i.log. If one fails, all are stopped; Ctrl-C asks
# all to save and stop. Who has not stopped SECONDS later (30), or at a second Ctrl-C, is killed.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=launch/together.sh
source "$(dirname "${BASH_SOURCE[0]}")/together.sh"

processes=2 devices=2 port="" logs="" grace=30
while [ $# -gt 0 ]; do
  case "$1" in
    --processes | --devices | --port | --logs | --grace)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --dry-run)
      DRY_RUN=1
      shift
      ;;
    --help | -h) usage; exit 0 ;;
    -*) fail "unknown flag $1; see --help" ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || fail "no command of cir-jax given; see --help"
if [ -z "$port" ]; then
  find_port
  port="$PORT"
fi
for number in "$processes" "$devices" "$port" "$grace"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || fail "'$number' is no number above 0"
done

if [ -z "${CIR_JAX:-}" ]; then
  prepare_environment demo
  CIR_JAX="$VENV/bin/cir-jax"
fi
export CIR_JAX_COORDINATOR="127.0.0.1:$port" CIR_JAX_PROCESSES="$processes" JAX_PLATFORMS=cpu
count_flag=--xla_force_host_platform_device_count
shopt -s extglob
XLA_FLAGS="${XLA_FLAGS:-}"
XLA_FLAGS="${XLA_FLAGS//$count_flag=+([0-9])/}" # another count would contradict --devices
export XLA_FLAGS="${XLA_FLAGS##+( )}${XLA_FLAGS:+ }$count_flag=$devices"
if [ "$DRY_RUN" = 1 ]; then
  for ((i = 0; i < processes; i++)); do
    echo "CIR_JAX_COORDINATOR=$CIR_JAX_COORDINATOR CIR_JAX_PROCESSES=$processes" \
      "CIR_JAX_PROCESS=$i JAX_PLATFORMS=cpu XLA_FLAGS=$(quote "$XLA_FLAGS") $CIR_JAX $(quote "$@")"
  done
  exit 0
fi

command=("$@")
[ -n "$logs" ] || logs="$(mktemp -d)"
start_process() { # I
  export CIR_JAX_PROCESS="$1"
  # shellcheck disable=SC2086 # a command and its first arguments
  exec $CIR_JAX "${command[@]}"
}
run_together "$processes" "$logs" "$grace"
