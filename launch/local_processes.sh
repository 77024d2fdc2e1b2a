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
while [ -z "$port" ]; do
  port=$((20000 + RANDOM % 12000)) # below the ports that systems give to clients
  (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && port="" # somebody listens there
done
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

[ -n "$logs" ] || logs="$(mktemp -d)"
mkdir -p "$logs"
groups=() running=()
# shellcheck disable=SC2317,SC2329 # called by the trap
signal_all() { # SIGNAL; to whole groups, so that nothing that a process started is left
  local group
  for group in ${groups[@]+"${groups[@]}"}; do kill "-$1" -- "-$group" 2>/dev/null || true; done
}

anything_left() {
  local group
  for group in "${groups[@]}"; do ! kill -0 -- "-$group" 2>/dev/null || return 0; done
  return 1
}

# No `wait -n`, which the bash of macOS does not have: looks at each process in turn.
first_status=0
look() {
  local pid status still=()
  for pid in ${running[@]+"${running[@]}"}; do
    if kill -0 "$pid" 2>/dev/null; then
      still+=("$pid")
    else
      status=0
      wait "$pid" || status=$?
      [ "$first_status" != 0 ] || first_status=$status
    fi
  done
  running=(${still[@]+"${still[@]}"})
}

asked=0
trap 'signal_all KILL; wait' EXIT
trap 'asked=$((asked + 1)) first_status=130' INT
trap 'asked=$((asked + 1)) first_status=143' TERM HUP
set -m # a group of its own for each process; so Ctrl-C reaches only this script, which sends TERM
for ((i = 0; i < processes; i++)); do
  export CIR_JAX_PROCESS="$i"
  if [ "$i" = 0 ]; then
    $CIR_JAX "$@" </dev/null &
  else
    $CIR_JAX "$@" >"$logs/process-$i.log" 2>&1 </dev/null &
  fi
  groups+=($!)
done
set +m
running=("${groups[@]}")
while [ ${#running[@]} -gt 0 ] && [ "$first_status" = 0 ]; do
  sleep 0.2 || true
  look
done
# A process that waits for a dead one in a collective never sees TERM: hence the time limit.
signal_all TERM
for ((tenth = 0; tenth < grace * 10; tenth++)); do
  { anything_left && [ "$asked" -lt 2 ]; } || break
  sleep 0.1 || true
done
if [ "$first_status" != 0 ]; then
  echo "local_processes.sh: ended with status $first_status; logs of processes 1 and up: $logs" >&2
fi
exit "$first_status"
