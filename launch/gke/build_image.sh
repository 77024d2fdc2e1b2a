#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the container image of this checkout for TPU or GPU nodes, and pushes it.
#
# usage: bash launch/gke/build_image.sh --image IMAGE [--for tpu | gpu] [--no-push] [--dry-run]
#   IMAGE is a name in a registry that the cluster reads, e.g. REGION-docker.pkg.dev/PROJECT/REPO/cir_jax:1
#   --for gpu installs CUDA 13; tpu is the default. The files are those that git tracks, as they are now.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

image="" for="tpu" push=1
while [ $# -gt 0 ]; do
  case "$1" in
    --image | --for)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --no-push) push=0 ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) usage; exit 0 ;;
    *) fail "unknown flag $1; see --help" ;;
  esac
  shift
done
[ -n "$image" ] || fail "--image is missing: the name of the image in its registry"
case "$for" in
  tpu) extra=tpu ;;
  gpu) extra=cuda ;;
  *) fail "--for $for is neither tpu nor gpu" ;;
esac
need docker "install Docker, or build launch/gke/Dockerfile elsewhere"

# Only tracked files: a checkout also holds data, runs and an environment of gigabytes.
context=CONTEXT snapshot=""
if [ "$DRY_RUN" = 0 ]; then
  context="$(mktemp -d)"
  trap 'rm -rf "$context" "$context.tar"' EXIT
  # A commit of the files as they are now, on no branch; empty if nothing was changed.
  snapshot="$(git -C "$ROOT" stash create)"
fi
execute git -C "$ROOT" archive --output "$context.tar" "${snapshot:-HEAD}"
execute tar xf "$context.tar" -C "$context"
execute docker build --build-arg "EXTRA=$extra" --file "$context/launch/gke/Dockerfile" --tag "$image" "$context"
[ "$push" = 0 ] || execute docker push "$image"
