#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs cir-jax on a Cloud TPU slice: create it, install on all workers, start, follow, delete.
#
# usage: bash launch/tpu_pod.sh ACTION --name NAME --zone ZONE [flags]
#   create     --type v5litepod-16 [--version RUNTIME] [--spot] [--queued]
#              RUNTIME follows from the type; --queued waits in the queue of Cloud TPU for a slice
#   install    copies this checkout (changes to tracked files too) to every worker, with jax[tpu]
#   mount      --bucket NAME: mounts a bucket at /mnt/NAME on every worker (gcsfuse)
#   start      -- train --config clip_sum:fashioniq,stage=1 --set data.root=/mnt/BUCKET/fashioniq ...
#              workdir must be a folder that all workers see: --set workdir=/mnt/BUCKET/runs/one
#   logs       follows the output of worker 0
#   status     state of the slice, and on every worker whether a run is on, with its last line
#   stop       asks the run to save and stop, and waits; `start` with the same command resumes it
#   delete     deletes the slice ([--queued] with its request)
#   up         create, install, mount (if --bucket is given), start and logs, one after the other
# Every action takes --project ID and --dry-run, which prints the gcloud commands. Slices of several
# workers need `ssh-add ~/.ssh/google_compute_engine` first.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

[ $# -gt 0 ] || { usage >&2; exit 2; }
case "$1" in
  --help | -h) usage; exit 0 ;;
esac
action="$1" name="" zone="" project="" type=v5litepod-16 version="" spot=0 queued=0 bucket=""
shift
run=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name | --zone | --project | --type | --version | --bucket)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
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
  create | install | mount | start | logs | status | stop | delete | up) ;;
  *) fail "unknown action $action; there are: create install mount start logs status stop delete up" ;;
esac
[ -n "$name" ] || fail "--name is missing: the name of the TPU slice"
[ -n "$zone" ] || fail "--zone is missing, e.g. --zone us-central1-a"
case "$action" in
  start | up)
    [ ${#run[@]} -gt 0 ] ||
      fail "$action needs a command after --, e.g. -- train --config clip_sum:cirr"
    ;;
  mount) [ -n "$bucket" ] || fail "mount needs --bucket NAME" ;;
esac
need gcloud "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
bucket="${bucket#gs://}"
bucket="${bucket%/}"
[[ "$bucket" =~ ^[a-z0-9._-]*$ ]] || fail "--bucket $bucket is no name of a bucket; give NAME or gs://NAME"
place=(--zone "$zone")
[ -z "$project" ] || place+=(--project "$project")

tpus() { execute gcloud compute tpus "$@" "${place[@]}"; }

on_workers() { # WORKERS COMMAND
  tpus tpu-vm ssh "$name" --worker "$1" --command "$2"
}

state() { # KIND FIELD; empty if there is no such thing
  gcloud compute tpus "$1" describe "$name" "${place[@]}" --format "value($2)" 2>/dev/null || true
}

runtime_version() { # by Google's page "TPU software versions"
  case "$type" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "no runtime is known for --type $type; give one with --version" ;;
  esac
}

create() {
  local options now="" runtime="$version"
  [ -n "$runtime" ] || runtime="$(runtime_version)"
  options=(--accelerator-type "$type")
  [ "$spot" = 0 ] || options+=(--spot)
  [ "$DRY_RUN" = 1 ] || now="$(state tpu-vm state)"
  case "$now" in
    READY)
      echo "$name exists already and is used"
      return
      ;;
    PREEMPTED | TERMINATED | STOPPED) fail "$name is $now; delete it and create it again" ;;
  esac
  if [ "$queued" = 0 ]; then
    tpus tpu-vm create "$name" "${options[@]}" --version "$runtime"
    return
  fi
  if [ "$DRY_RUN" = 1 ] || [ -z "$(state queued-resources name)" ]; then
    tpus queued-resources create "$name" --node-id "$name" "${options[@]}" \
      --runtime-version "$runtime"
  fi
  [ "$DRY_RUN" = 1 ] || wait_for_slice
}

wait_for_slice() {
  local now before=""
  while true; do
    now="$(state queued-resources state.state)"
    [ "$now" = "$before" ] || echo "$name: ${now:-no answer}"
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        fail "the request for $name is $now; delete it (delete --queued) and create it again"
        ;;
    esac
    before="$now"
    sleep "${CIR_JAX_POLL:-30}"
  done
}

install() {
  local folder snapshot=HEAD
  folder="$(mktemp -d)"
  if [ "$DRY_RUN" = 0 ]; then
    # A commit of the files as they are now, on no branch; empty if nothing was changed.
    snapshot="$(git -C "$ROOT" stash create)"
  fi
  execute git -C "$ROOT" archive --format tar.gz --output "$folder/cir_jax.tar.gz" "${snapshot:-HEAD}"
  tpus tpu-vm scp "$folder/cir_jax.tar.gz" "$name:cir_jax.tar.gz" --worker all
  rm -r "$folder"
  # Source folders are replaced, so that files deleted here are gone there; runs and .venv stay.
  on_workers all "mkdir -p cir_jax && cd cir_jax && rm -rf cir_jax configs launch tests tools &&
    tar xzf ../cir_jax.tar.gz &&
    (python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || command -v python3.11 >/dev/null ||
      (sudo apt-get -o DPkg::Lock::Timeout=600 update -qq &&
        sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3.11 python3.11-venv)) &&
    source launch/environment.sh && prepare_environment tpu"
}

# Orbax ends a checkpoint by renaming its folder, which gcsfuse refuses above --rename-dir-limit.
mount_bucket() {
  local key=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com/apt
  on_workers all "(command -v gcsfuse >/dev/null || (
      curl -fsS $url/doc/apt-key.gpg | sudo tee $key >/dev/null &&
      echo \"deb [signed-by=$key] $url gcsfuse-\$(lsb_release -cs) main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
      sudo apt-get -o DPkg::Lock::Timeout=600 update -qq &&
      sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq gcsfuse)) &&
    (mountpoint -q /mnt/$bucket || (
      sudo mkdir -p /mnt/$bucket && sudo chown \$USER /mnt/$bucket &&
      gcsfuse --implicit-dirs --rename-dir-limit 1000000 $bucket /mnt/$bucket))"
}

start() {
  local command
  command=$(quote "${run[@]}")
  on_workers all "cd cir_jax || exit 1
    if [ -f run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then
      echo 'a run is on; stop it first' >&2; exit 1; fi
    CIR_JAX_DISTRIBUTED=auto nohup .venv/bin/cir-jax $command >run.log 2>&1 </dev/null &
    echo \$! >run.pid"
}

# By process id: a pattern would match the command line of the very shell that looks for it.
stop() {
  on_workers all "cd cir_jax && [ -f run.pid ] && pid=\$(cat run.pid) && rm run.pid || exit 0
    kill -TERM \$pid 2>/dev/null || exit 0
    for i in \$(seq 600); do kill -0 \$pid 2>/dev/null || exit 0; sleep 1; done
    echo 'still saving after 600 s' >&2; exit 1"
}

status() {
  tpus tpu-vm describe "$name" --format "value(state)"
  on_workers all "cd cir_jax && (kill -0 \$(cat run.pid) 2>/dev/null && echo running || echo no run) &&
    tail -n 1 run.log"
}

delete() {
  if [ "$queued" = 0 ]; then
    tpus tpu-vm delete "$name" --quiet
  else
    tpus queued-resources delete "$name" --force --quiet
  fi
}

logs() { on_workers 0 "tail -n 100 -F cir_jax/run.log"; }

case "$action" in
  mount) mount_bucket ;;
  up)
    create
    install
    [ -z "$bucket" ] || mount_bucket
    start
    logs
    ;;
  *) "$action" ;;
esac
