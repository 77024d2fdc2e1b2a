#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What launch/tpu_pod.sh runs on each worker of a slice: start a run, watch it, stop it.
#
# usage: bash launch/tpu_worker.sh ACTION [--dry-run]
#   install                  makes .venv with jax[tpu]; first a Python 3.11 by uv, or by the deadsnakes
#                            archive, where the system has none
#   mount BUCKET             mounts a bucket at /mnt/BUCKET (gcsfuse)
#   start STAMP LOGS -- ARG  starts `cir-jax ARG ...` in the background. Its output goes to run/STAMP.log
#                            and, at most a minute old, to LOGS/STAMP-worker-I.log (LOGS may be empty)
#   state                    one line: no run, running, `ended STATUS`, `stopped STATUS` if a stop was
#                            asked for, or lost if the machine restarted under it
#   tail                     the last lines of a run that ended with a status other than 0 and 75
#   log                      follows the output
#   stop                     asks the run to save and stop, and waits up to 600 s (CIR_JAX_STOP)
#   kill                     ends the run at once
# --dry-run prints the commands and runs none. It stands last, and for start before STAMP.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

[ $# -gt 0 ] || { usage >&2; exit 2; }
case "$1" in
  --help | -h) usage; exit 0 ;;
esac
action="$1"
shift
case "$action" in
  start) [ "${1:-}" != --dry-run ] || { DRY_RUN=1 && shift; } ;;
  run) ;;
  *) [ $# = 0 ] || [ "${!#}" != --dry-run ] || DRY_RUN=1 ;;
esac
cd "$ROOT"
run=run

# The number of this worker in its slice, as Cloud TPU has it; elsewhere the name of the machine.
worker() {
  local url=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
  curl -fsS --max-time 5 -H "Metadata-Flavor: Google" "$url" 2>/dev/null || hostname
}

apt() { # PACKAGE ...
  execute sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
  execute sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq "$@"
}

install() {
  [ -x "$VENV/bin/python" ] || (find_python) >/dev/null 2>&1 || make_python
  prepare_environment tpu
}

# The apt of Ubuntu 22.04 has only a release candidate of 3.11.
make_python() {
  local uv="$HOME/.local/bin/uv"
  if [ "$DRY_RUN" = 1 ]; then
    execute python3 -m pip install --user --quiet uv
    execute "$uv" python install 3.11
    is_new_enough() { true; } # of what uv would make
    return
  fi
  if command -v uv >/dev/null 2>&1; then uv="$(command -v uv)"; fi
  if { [ -x "$uv" ] || python3 -m pip install --user --quiet uv; } && "$uv" python install 3.11; then
    PYTHON="$("$uv" python find 3.11)"
    export PYTHON
    return
  fi
  echo "uv gives no Python 3.11 here; the deadsnakes archive is tried" >&2
  execute sudo add-apt-repository -y ppa:deadsnakes/ppa
  apt python3.11 python3.11-venv
  export PYTHON=python3.11
}

# Orbax ends a checkpoint by renaming its folder, which gcsfuse refuses above --rename-dir-limit.
mount_bucket() { # BUCKET
  local bucket="$1" key=/usr/share/keyrings/cloud.google.asc list=/etc/apt/sources.list.d/gcsfuse.list
  local url=https://packages.cloud.google.com/apt
  if [ "$DRY_RUN" = 1 ] || ! command -v gcsfuse >/dev/null 2>&1; then
    execute bash -c "curl -fsS $url/doc/apt-key.gpg | sudo tee $key >/dev/null"
    execute bash -c "echo deb [signed-by=$key] $url gcsfuse-\$(lsb_release -cs) main |
      sudo tee $list >/dev/null"
    apt gcsfuse
  fi
  if [ "$DRY_RUN" = 1 ] || ! mountpoint -q "/mnt/$bucket"; then
    execute sudo mkdir -p "/mnt/$bucket"
    execute sudo chown "$(id -un)" "/mnt/$bucket"
    execute gcsfuse --implicit-dirs --rename-dir-limit 1000000 "$bucket" "/mnt/$bucket"
  fi
}

alive() { [ -f $run/pid ] && kill -0 "$(cat $run/pid)" 2>/dev/null; }

start() { # STAMP LOGS -- ARG ...
  local stamp="$1" logs="$2"
  shift 2
  [ "${1:-}" != -- ] || shift
  if [ "$DRY_RUN" = 1 ]; then
    execute env CIR_JAX_DISTRIBUTED=auto .venv/bin/cir-jax "$@"
    return
  fi
  if alive; then
    echo "a run is on; stop it first" >&2
    exit 1
  fi
  mkdir -p $run
  rm -f $run/status $run/asked $run/pid
  ln -sfn "$stamp.log" $run/log
  : >"$run/$stamp.log"
  # In a session of its own: it must outlive the connection that starts it.
  setsid bash launch/tpu_worker.sh run "$stamp" "$logs" "$@" >/dev/null 2>&1 </dev/null &
  until [ -f $run/pid ]; do sleep 0.1; done
}

# In the background: keeps the status, which nobody else waits for, and copies the log. A file that
# stays open in a mounted bucket is seen by no one before it is closed: so whole copies.
run() { # STAMP LOGS ARG ...
  local stamp="$1" logs="$2" pid copier="" copy="" status=0 late
  shift 2
  # A machine that is taken away signals all processes; a second signal would end the run unsaved.
  trap : TERM HUP INT
  CIR_JAX_DISTRIBUTED=auto .venv/bin/cir-jax "$@" >"$run/$stamp.log" 2>&1 </dev/null &
  pid=$!
  echo "$pid" >$run/pid.new
  mv $run/pid.new $run/pid
  if [ -n "$logs" ]; then
    copy="$logs/$stamp-worker-$(worker).log"
    keep_saving "$stamp" "$copy" &
    copier=$!
  fi
  wait "$pid" || status=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal ends `wait`, not the run
    status=0
    wait "$pid" || status=$?
  done
  late=0
  wait "$pid" 2>/dev/null || late=$?
  [ "$late" = 127 ] || status=$late # 127: it was waited for above
  echo "ended with status $status" >>"$run/$stamp.log"
  [ -z "$copier" ] || kill "$copier" 2>/dev/null || true
  save_log "$stamp" "$copy"
  echo "$status" >$run/status.new
  mv $run/status.new $run/status
}

keep_saving() { # STAMP FILE
  local seconds=0 every="${CIR_JAX_SAVE:-50}"
  while true; do
    sleep 1
    seconds=$((seconds + 1))
    [ $((seconds % every)) != 0 ] || save_log "$1" "$2"
  done
}

save_log() { # STAMP FILE
  [ -z "$2" ] || { mkdir -p "$(dirname "$2")" && cp "$run/$1.log" "$2"; } ||
    echo "the log could not be copied to $2" >>"$run/$1.log"
}

state() {
  local said="no run"
  if [ -f $run/status ]; then
    said="ended"
    [ ! -f $run/asked ] || said="stopped"
    said="$said $(cat $run/status)"
  elif alive; then
    said="running"
  elif [ -f $run/pid ]; then
    # Between the end of the run and the note of its status there is a moment.
    sleep 2
    said="lost"
    [ ! -f $run/status ] || said="ended $(cat $run/status)"
  fi
  echo "cir_jax worker $(worker): $said"
}

tail_log() {
  [ -f $run/status ] || exit 0
  case "$(cat $run/status)" in
    0 | 75) ;;
    *)
      echo "worker $(worker) ended with status $(cat $run/status); its last lines:"
      tail -n 20 $run/log
      ;;
  esac
}

# By process id: a pattern would match the command line of the very shell that looks for it.
stop() {
  alive || exit 0
  touch $run/asked
  kill -TERM "$(cat $run/pid)" 2>/dev/null || true
  for ((second = 0; second < ${CIR_JAX_STOP:-600}; second++)); do
    [ ! -f $run/status ] || exit 0
    sleep 1
  done
  echo "still saving after ${CIR_JAX_STOP:-600} s" >&2
  exit 1
}

case "$action" in
  install) install ;;
  mount) mount_bucket "$1" ;;
  start | run) "$action" "$@" ;;
  state) state ;;
  tail) tail_log ;;
  log) execute tail -n 100 -F $run/log ;;
  stop) if [ "$DRY_RUN" = 1 ]; then execute kill -TERM RUN; else stop; fi ;;
  kill)
    if [ "$DRY_RUN" = 1 ]; then
      execute kill -KILL RUN
    elif alive; then
      kill -KILL "$(cat $run/pid)"
    fi
    ;;
  *) fail "unknown action $action; see --help" ;;
esac
