# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by scripts that run several processes of one run on this machine.
#
#   find_port                     sets PORT to one on which nobody listens
#   run_together COUNT LOGS GRACE starts `start_process I` for I below COUNT, each in a group of its
#                                 own, and ends with them. Process 0 prints here, the others to
#                                 LOGS/process-I.log. If one fails, all are stopped. Ctrl-C and TERM
#                                 ask all to save and stop; who has not stopped GRACE seconds later,
#                                 or at a second one, is killed. Returns the first status that is not
#                                 0; after a signal 75 if a process said so (it can be resumed), else
#                                 130 or 143.
# `start_process` is a function of the script; it ends in `exec COMMAND`.

find_port() {
  while true; do
    PORT=$((20000 + RANDOM % 12000)) # below the ports that systems give to clients
    (: <"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || return 0
  done
}

groups=() running=() asked=0 first_status=0 resumable=0

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
look() {
  local pid status still=()
  for pid in ${running[@]+"${running[@]}"}; do
    if kill -0 "$pid" 2>/dev/null; then
      still+=("$pid")
    else
      status=0
      wait "$pid" || status=$?
      [ "$status" != 75 ] || resumable=1
      [ "$first_status" != 0 ] || first_status=$status
    fi
  done
  running=(${still[@]+"${still[@]}"})
}

run_together() {
  local count="$1" logs="$2" grace="$3" i tenth
  mkdir -p "$logs"
  trap 'signal_all KILL; wait' EXIT
  trap 'asked=$((asked + 1)) first_status=130' INT
  trap 'asked=$((asked + 1)) first_status=143' TERM HUP
  set -m # a group of its own for each process; so Ctrl-C reaches only this script, which sends TERM
  for ((i = 0; i < count; i++)); do
    if [ "$i" = 0 ]; then
      start_process "$i" </dev/null &
    else
      start_process "$i" >"$logs/process-$i.log" 2>&1 </dev/null &
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
    look
  done
  look
  [ "$asked" = 0 ] || [ "$resumable" = 0 ] || first_status=75
  if [ "$first_status" != 0 ]; then
    echo "$(basename "$0"): ended with status $first_status; logs of processes 1 and up: $logs" >&2
  fi
  return "$first_status"
}
