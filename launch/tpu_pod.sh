#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs cir-jax on a Cloud TPU slice: create it, install on all workers, start, follow, delete.
#
# usage: bash launch/tpu_pod.sh ACTION --name NAME --zone ZONE [flags]
#   create     --type v5litepod-16 [--version v2-alpha-tpuv5-lite] [--spot]
#   install    copies this checkout to every worker and installs it with jax[tpu]
#   mount      --bucket NAME: mounts a bucket at /mnt/NAME on every worker (gcsfuse)
#   start      -- train --config clip_sum:fashioniq,stage=1 --set data.root=/mnt/BUCKET/fashioniq ...
#   logs       follows the output of worker 0
#   stop       asks the run to save and stop; `start` with the same command resumes it
#   delete     deletes the slice
#   up         create, install, start and logs, one after the other
# Every action takes --project ID and --dry-run, which prints the gcloud commands.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() { sed -n '3,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

[ $# -gt 0 ] || { usage >&2; exit 2; }
case "$1" in
  --help | -h) usage; exit 0 ;;
esac
action="$1" name="" zone="" project="" type=v5litepod-16 version=v2-alpha-tpuv5-lite spot=0 bucket=""
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
[ -n "$name" ] || fail "--name is missing: the name of the TPU slice"
[ -n "$zone" ] || fail "--zone is missing, e.g. --zone us-central1-a"
place=(--zone "$zone")
[ -z "$project" ] || place+=(--project "$project")

gcloud_tpu() { execute gcloud compute tpus tpu-vm "$@" "${place[@]}"; }

on_workers() { # WORKERS COMMAND
  gcloud_tpu ssh "$name" --worker "$1" --command "$2"
}

create() {
  local options=(--accelerator-type "$type" --version "$version")
  [ "$spot" = 0 ] || options+=(--spot)
  if [ "$DRY_RUN" = 0 ] && gcloud compute tpus tpu-vm describe "$name" "${place[@]}" >/dev/null 2>&1; then
    echo "$name exists already and is used"
  else
    gcloud_tpu create "$name" "${options[@]}"
  fi
}

install() {
  local archive
  archive="$(mktemp -d)/cir_jax.tar.gz"
  execute git -C "$ROOT" archive --format tar.gz --prefix cir_jax/ --output "$archive" HEAD
  gcloud_tpu scp "$archive" "$name:cir_jax.tar.gz" --worker all
  on_workers all "tar xzf cir_jax.tar.gz && cd cir_jax &&
    (python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      (sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv)) &&
    source launch/environment.sh && prepare_environment tpu"
}

mount_bucket() {
  [ -n "$bucket" ] || fail "mount needs --bucket NAME"
  on_workers all "(command -v gcsfuse >/dev/null || (echo deb \
    https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null &&
    curl -s https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo apt-key add - &&
    sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse)) &&
    sudo mkdir -p /mnt/$bucket && sudo chown \$USER /mnt/$bucket &&
    (mountpoint -q /mnt/$bucket || gcsfuse --implicit-dirs $bucket /mnt/$bucket)"
}

start() {
  local command
  [ ${#run[@]} -gt 0 ] || fail "start needs a command after --, e.g. -- train --config clip_sum:cirr"
  command=$(printf '%q ' "${run[@]}")
  on_workers all "cd cir_jax && CIR_JAX_DISTRIBUTED=auto nohup .venv/bin/cir-jax $command \
    >run.log 2>&1 </dev/null & sleep 1"
}

case "$action" in
  create) create ;;
  install) install ;;
  mount) mount_bucket ;;
  start) start ;;
  logs) on_workers 0 "tail -n 100 -F cir_jax/run.log" ;;
  stop) on_workers all "pkill -TERM -f 'bin/cir-jax' || true" ;;
  delete) gcloud_tpu delete "$name" --quiet ;;
  up)
    [ ${#run[@]} -gt 0 ] || fail "up needs a command after --, e.g. -- train --config clip_sum:cirr"
    create
    install
    start
    on_workers 0 "tail -n 100 -F cir_jax/run.log"
    ;;
  *) fail "unknown action $action; there are: create install mount start logs stop delete up" ;;
esac
