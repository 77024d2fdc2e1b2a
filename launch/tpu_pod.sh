#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs cir-jax on a Cloud TPU slice: create it, install on all workers, start, follow, delete.
#
# usage: bash launch/tpu_pod.sh ACTION --name NAME --zone ZONE [flags] [-- COMMAND OF cir-jax]
#   create     asks for a slice in the queue of Cloud TPU and waits for it
#   install    copies this checkout (changes to tracked files too) to every worker, with jax[tpu]
#   mount      --bucket NAME: mounts a bucket at /mnt/NAME on every worker (gcsfuse)
#   start      -- train --config clip_sum:fashioniq,stage=1 --set data.root=/mnt/BUCKET/fashioniq ...
#              workdir must be a folder that all workers see: --set workdir=/mnt/BUCKET/runs/one
#   logs       follows the output of worker 0, or of --worker I
#   status     state of the slice, and of the run on every worker
#   stop       asks the run to save and stop, and waits; `start` with the same command resumes it
#   delete     deletes the slice and its request
#   up         create, install, mount (if --bucket is given), start and logs, one after the other
#   babysit    the same, then watches until the run is finished: makes a slice anew that was taken
#              away and starts the same command again. Ends with 0 when the run is finished, 2 for
#              bad input, 75 after `stop`, 1 after too many crashes. It can be ended and called again.
# Flags of the slice (create, up, babysit):
#   --type TYPE            v5litepod-16 is the default; --version RUNTIME follows from it
#   --spot | --reserved    instead of on demand
#   --direct               no queue: fails at once where there is no capacity. Given to create, it
#                          belongs to all later actions too
#   --network N --subnetwork N --service-account EMAIL --scopes LIST --labels K=V,...
#   --data-disk source=DISK[,mode=read-only]   may be repeated
#   --internal-ips         without external addresses; later actions then need it too, or --iap
# Others:
#   --iap                  reaches the workers through Identity-Aware Proxy
#   --bucket NAME          also keeps the output of all workers in /mnt/NAME/logs, at most a minute old
#   --restarts N           babysit starts a run that crashed again at most N times in a row (5)
#   --project ID
# --dry-run prints the gcloud commands and runs none. Slices of several workers need
# `ssh-add ~/.ssh/google_compute_engine` first.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=launch/cloud_tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/cloud_tpu.sh"

[ $# -gt 0 ] || { usage >&2; exit 2; }
case "$1" in
  --help | -h) usage; exit 0 ;;
esac
action="$1" name="" zone="" project="" type=v5litepod-16 version="" bucket="" worker=0 restarts=5
# shellcheck disable=SC2034 # read by cloud_tpu.sh
spot=0 reserved=0 direct=0 internal_ips=0 iap=0 network="" subnetwork="" service_account="" scopes="" \
  labels="" data_disks=()
shift
run=()
while [ $# -gt 0 ]; do
  flag="${1#--}"
  case "$1" in
    --name | --zone | --project | --type | --version | --bucket | --worker | --restarts | --network | \
      --subnetwork | --service-account | --scopes | --labels)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${flag//-/_}" '%s' "$2"
      shift
      ;;
    --data-disk)
      [ $# -ge 2 ] || fail "$1 needs a value"
      data_disks+=("$2")
      shift
      ;;
    --spot | --reserved | --direct | --internal-ips | --iap) printf -v "${flag//-/_}" 1 ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage; exit 0 ;;
    --)
      shift
      run=("$@")
      break
      ;;
    *) fail "unknown flag $1; see --help" ;;
  esac
  shift
done
case "$action" in
  create | install | mount | start | logs | status | stop | delete | up | babysit) ;;
  *) fail "unknown action $action; there are: create install mount start logs status stop delete up babysit" ;;
esac
[ -n "$name" ] || fail "--name is missing: the name of the TPU slice"
[ -n "$zone" ] || fail "--zone is missing, e.g. --zone us-central1-a"
case "$type" in
  tpu7x* | v7x*) fail "the Cloud TPU API has no TPU7x, only GKE has: see launch/gke/submit.sh --help" ;;
esac
[ "$spot$reserved" != 11 ] || fail "--spot and --reserved exclude each other; give one of them"
case "$action" in
  start | up | babysit)
    [ ${#run[@]} -gt 0 ] ||
      fail "$action needs a command after --, e.g. -- train --config clip_sum:cirr"
    ;;
  mount) [ -n "$bucket" ] || fail "mount needs --bucket NAME" ;;
esac
for number in "$worker" "$restarts"; do
  [[ "$number" =~ ^[0-9]+$ ]] || fail "'$number' is no number"
done
need gcloud "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
bucket="${bucket#gs://}"
bucket="${bucket%/}"
[[ "$bucket" =~ ^[a-z0-9._-]*$ ]] || fail "--bucket $bucket is no name of a bucket; give NAME or gs://NAME"
place=(--zone "$zone")
[ -z "$project" ] || place+=(--project "$project")
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# IAP is in no released `tpu-vm ssh`; that of queued resources has it.
reach() { # ssh|scp ARG ...
  local verb="$1" way=(tpu-vm)
  shift
  if [ "$iap" = 1 ] && [ "$direct" = 1 ]; then
    execute gcloud alpha compute tpus tpu-vm "$verb" "$@" --tunnel-through-iap "${place[@]}"
    return
  fi
  [ "$iap" = 0 ] || way=(queued-resources)
  way+=("$verb" "$@")
  if [ "$iap" = 1 ]; then
    way+=(--node 0 --tunnel-through-iap)
  elif [ "$internal_ips" = 1 ]; then
    way+=(--internal-ip)
  fi
  tpus "${way[@]}"
}

on_workers() { # WORKERS COMMAND
  reach ssh "$name" --worker "$1" --command "$2"
}

worker_script() { # WORKERS ARG ...
  local workers="$1"
  shift
  on_workers "$workers" "bash cir_jax/launch/tpu_worker.sh $(quote "$@")"
}

# Once for a whole babysitting: a slice that is made anew gets the code that the run began with.
pack() {
  local snapshot=HEAD
  [ ! -f "$scratch/cir_jax.tar.gz" ] || return 0
  if [ "$DRY_RUN" = 0 ]; then
    # A commit of the files as they are now, on no branch; empty if nothing was changed.
    snapshot="$(git -C "$ROOT" stash create)"
  fi
  execute git -C "$ROOT" archive --format tar.gz --output "$scratch/cir_jax.tar.gz" "${snapshot:-HEAD}"
}

install() {
  pack
  # Source folders are replaced, so that files deleted here are gone there; runs and .venv stay.
  reach scp "$scratch/cir_jax.tar.gz" "$name:cir_jax.tar.gz" --worker all &&
    on_workers all "mkdir -p cir_jax && cd cir_jax && rm -rf cir_jax configs launch tests tools &&
      tar xzf ../cir_jax.tar.gz && bash launch/tpu_worker.sh install"
}

mount_bucket() { worker_script all mount "$bucket"; }

start() {
  worker_script all start "$name-$(date -u +%Y%m%dT%H%M%SZ)" "${bucket:+/mnt/$bucket/logs}" -- "${run[@]}"
}

up() {
  create_slice
  install
  [ -z "$bucket" ] || mount_bucket
  start
}

status() {
  if [ "$DRY_RUN" = 1 ]; then
    tpus tpu-vm describe "$name" --format "value(state)"
  else
    find_slice
    echo "${ANSWER:-there is no $name}"
    [ "$ANSWER" = READY ] || return 0
  fi
  worker_script all state
}

# Sets SAID to a line for each worker; returns 1 if the slice is gone. Right after a slice came up,
# ssh may not have: hence the tries.
ask_workers() {
  local try=1
  local command="if [ -f cir_jax/launch/tpu_worker.sh ]; then bash cir_jax/launch/tpu_worker.sh state
    else echo cir_jax worker new: no run; fi"
  while true; do
    if SAID="$(on_workers all "$command" 2>"$scratch/ssh_errors" </dev/null)"; then
      SAID="$(printf '%s\n' "$SAID" | grep '^cir_jax worker' || true)"
      [ -z "$SAID" ] || return 0
    fi
    describe tpu-vm state
    [ "$ANSWER" = READY ] || return 1
    [ "$try" -lt "$TRIES" ] || {
      cat "$scratch/ssh_errors" >&2
      fail "the workers of $name do not answer; the run may go on there: call babysit again"
    }
    try=$((try + 1))
    sleep "$POLL"
  done
}

said() { grep -Eq "$@" <<<"$SAID"; }

# Waits until no worker runs any more. Those that outlive one that failed end by themselves within
# the time-outs of the run; after ten looks they are ended.
watch() {
  local late=0
  while ask_workers; do
    said ': running$' || return 0
    if said ': (ended|stopped|lost|no run)'; then late=$((late + 1)); fi
    if [ "$late" -gt 10 ]; then
      echo "$name: some workers run on without the others and are ended" >&2
      worker_script all kill || true
      late=0
    fi
    sleep "$POLL"
  done
  return 1 # the slice is gone
}

babysit() {
  local crashes=0 failures=0 refusals=0 began
  if [ "$DRY_RUN" = 1 ]; then
    up
    worker_script all state
    return
  fi
  pack
  while true; do
    find_slice
    [ -n "$ANSWER" ] || request_slice
    if ! wait_until_ready; then
      [ "$before" != FAILED ] || failures=$((failures + 1))
      [ "$failures" -le "$restarts" ] || fail "the request for $name failed $failures times in a row"
      echo "$name is ${before:-gone} and is made anew"
      delete_slice
      continue
    fi
    failures=0
    ask_workers || continue
    if ! said ': running$'; then
      if ! { install && { [ -z "$bucket" ] || mount_bucket; } && start; }; then
        refusals=$((refusals + 1))
        [ "$refusals" -le "$restarts" ] ||
          fail "the run could not be installed and started $refusals times in a row"
        sleep "$POLL"
        continue
      fi
      refusals=0
    fi
    began=$SECONDS
    watch || { echo "$name was taken away; the run goes on from its last checkpoint" && continue; }
    judge
    # A machine that is taken away ends its processes first, and is seen to be gone later.
    sleep "$POLL"
    describe tpu-vm state
    [ "$ANSWER" = READY ] || continue
    if [ "$crashed" = 1 ]; then
      [ $((SECONDS - began)) -lt "${CIR_JAX_HEALTHY:-3600}" ] || crashes=0
      crashes=$((crashes + 1))
      [ "$crashes" -le "$restarts" ] || fail_crashed "$crashes"
      echo "$name: crash $crashes of at most $restarts in a row; the run is started again"
    else
      echo "$name: the run was interrupted and is started again"
    fi
  done
}

# By the statuses of all workers: ends the script if the run is finished, stopped or given bad input;
# sets crashed otherwise.
judge() {
  printf '%s\n' "$SAID"
  if said ': (ended|stopped) 2$'; then
    worker_script all tail || true
    fail "the run was given something that it cannot use; correct it and call babysit again"
  fi
  if ! said -v ': (ended|stopped) 0$'; then
    echo "$name: the run is finished; the slice is kept until it is deleted"
    exit 0
  fi
  if said ': stopped '; then
    echo "$name: the run was stopped; the same command goes on with it"
    exit 75
  fi
  crashed=0
  if said -v ': ended (0|75)$'; then
    crashed=1
    worker_script all tail || true
  fi
}

fail_crashed() { # TIMES
  echo "$(basename "$0"): the run crashed $1 times in a row; it is not started again" >&2
  exit 1
}

case "$action" in
  create) create_slice ;;
  delete) delete_slice ;;
  mount) mount_bucket ;;
  logs) worker_script "$worker" log ;;
  stop) worker_script all stop ;;
  up)
    up
    worker_script 0 log
    ;;
  *) "$action" ;;
esac
