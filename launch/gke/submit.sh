#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs cir-jax on a GKE cluster: fills in a JobSet for TPU slices or GPU nodes and submits it.
#
# usage: bash launch/gke/submit.sh tpu --tpu v5e --topology 4x4 [--slices N] FLAGS -- COMMAND OF cir-jax
#        bash launch/gke/submit.sh gpu --gpu nvidia-h100-80gb [--gpus 8] [--nodes N] FLAGS -- COMMAND
#   --tpu     v4, v5e, v5p, v6e or tpu7x, with the --topology of its node pools: 4x4, 2x2x4, ...
#   --gpu     what the nodes are labelled with: kubectl get nodes -L cloud.google.com/gke-accelerator
# FLAGS:
#   --name NAME --image IMAGE   the image is made by launch/gke/build_image.sh
#   --bucket NAME               mounts a bucket at /mnt/NAME; the cluster needs the Cloud Storage FUSE
#                               CSI driver, and --service-account the right to use the bucket
#   --service-account NAME      of Kubernetes (default)
#   --namespace NAME            (default)
#   --spot                      runs on Spot nodes
#   --queue NAME                the LocalQueue of Kueue
#   --restarts N                a run that crashed starts again at most N times (5)
#   --chips N                   chips of a host, where the node pool differs from 4 (8 for v5e and v6e 2x4)
#   --xpk CLUSTER               submits through xpk, which has templates of its own, with --zone ZONE and
#                               --project ID; the --gpu is then xpk's device type (h100-mega-80gb-8). A
#                               bucket is attached with `xpk storage`, not here. xpk counts interruptions
#                               as --restarts (100) and does not restart a run that ended with status 1
#   --dry-run                   prints the JobSet, or the command of xpk, and submits nothing
# Status 75 (interrupted, resumes) and evicted pods start the JobSet again without limit, 2 (bad input)
# ends it at once. workdir must lie in the bucket, so that the run resumes. JobSet 0.10 or newer is needed.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
# With it, & in a value would mean the placeholder.
shopt -u patsub_replacement 2>/dev/null || true

[ $# -gt 0 ] || { usage >&2; exit 2; }
case "$1" in
  --help | -h) usage; exit 0 ;;
esac
kind="$1" name="" image="" tpu="" topology="" slices=1 gpu="" gpus=8 nodes=1 bucket="" spot=0 queue=""
service_account=default namespace=default restarts="" chips="" xpk="" zone="" project=""
shift
run=()
while [ $# -gt 0 ]; do
  flag="${1#--}"
  case "$1" in
    --name | --image | --tpu | --topology | --slices | --gpu | --gpus | --nodes | --bucket | --queue | \
      --service-account | --namespace | --restarts | --chips | --xpk | --zone | --project)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${flag//-/_}" '%s' "$2"
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

number() { [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1 $2 is no number above 0"; }
matches() { [[ "$2" =~ ^$3$ ]] || fail "$1 ${2:-is missing: it} must be $4"; }

# The names of its pods are longer, and Kubernetes ends them at 63 letters.
matches --name "$name" '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' "lower case letters, digits and -, 40 at most"
matches --image "$image" '[A-Za-z0-9][A-Za-z0-9._:/@-]*' "the name of an image"
matches --service-account "$service_account" '[a-z0-9][a-z0-9.-]*' "a name of Kubernetes"
matches --namespace "$namespace" '[a-z0-9][a-z0-9-]*' "a name of Kubernetes"
bucket="${bucket#gs://}"
bucket="${bucket%/}"
[ -z "$bucket" ] || matches --bucket "$bucket" '[a-z0-9][a-z0-9._-]*' "the name of a bucket"
[ -z "$queue" ] || matches --queue "$queue" '[a-z0-9][a-z0-9.-]*' "a name of Kubernetes"
for pair in "--slices $slices" "--gpus $gpus" "--nodes $nodes"; do number "${pair%% *}" "${pair##* }"; done
# xpk counts interruptions too, and ends a run that crashed.
if [ -z "$restarts" ]; then
  restarts=5
  [ -z "$xpk" ] || restarts=100
fi
[[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts $restarts is no number"
[ ${#run[@]} -gt 0 ] || fail "a command is missing after --, e.g. -- train --config clip_sum:cirr"

# Sets accelerator, hosts of a slice, chips of a host and the device type of xpk.
describe_tpu() {
  local sides="$topology" all=1 dimensions='[0-9]+x[0-9]+x[0-9]+' prefix="$tpu"
  case "$tpu" in
    v4) accelerator="tpu-v4-podslice" ;;
    v5e) accelerator=tpu-v5-lite-podslice prefix=v5litepod dimensions='[0-9]+x[0-9]+' ;;
    v5p) accelerator="tpu-v5p-slice" ;;
    v6e) accelerator=tpu-v6e-slice dimensions='[0-9]+x[0-9]+' ;;
    tpu7x) accelerator=tpu7x ;;
    *) fail "--tpu ${tpu:-is missing: it} must be v4, v5e, v5p, v6e or tpu7x" ;;
  esac
  matches --topology "$topology" "$dimensions" "like 4x4, and for v4, v5p and tpu7x like 2x2x4"
  device="$prefix-$topology"
  while [ -n "$sides" ]; do
    all=$((all * 10#${sides%%x*}))
    [ "$sides" != "${sides#*x}" ] || break
    sides="${sides#*x}"
  done
  [ "$all" -gt 0 ] || fail "--topology $topology has no chips"
  if [ -z "$chips" ]; then
    chips=4
    case "$tpu-$topology" in
      v5e-2x4 | v6e-2x4) chips=8 ;; # node pools of one host with eight
    esac
    [ "$all" -ge "$chips" ] || chips="$all"
  fi
  number --chips "$chips"
  [ $((all % chips)) = 0 ] || fail "--topology $topology has $all chips, which --chips $chips does not divide"
  hosts=$((all / chips))
  [ "$slices" = 1 ] || [ "$hosts" -gt 1 ] ||
    fail "--slices $slices: GKE joins only slices of several hosts, and $tpu $topology has one; take" \
      "a larger --topology"
}

case "$kind" in
  tpu) describe_tpu ;;
  gpu)
    matches --gpu "$gpu" '[a-z0-9][a-z0-9.-]*' "a type of GPU, e.g. nvidia-h100-80gb"
    # shellcheck disable=SC2034 # read by submit_xpk and fill
    accelerator="$gpu" hosts="$nodes" chips="$gpus" device="$gpu"
    ;;
  *) fail "$kind is neither tpu nor gpu" ;;
esac

# YAML takes the strings of JSON. Marks and their escapes as variables: versions of bash differ in how
# they read them in place.
json() { # ARG ...
  # shellcheck disable=SC1003,SC2016 # meant as they stand
  local argument list="" back='\' twice='\\' mark='"' marked='\"' line=$'\n' broken='\n' tab=$'\t' \
    tabbed='\t' variable='$(' literal='$$(' # Kubernetes puts variables in place of $(NAME)
  for argument in "$@"; do
    argument=${argument//"$back"/$twice}
    argument=${argument//"$mark"/$marked}
    argument=${argument//"$line"/$broken}
    argument=${argument//"$tab"/$tabbed}
    argument=${argument//"$variable"/$literal}
    list+="${list:+, }\"$argument\""
  done
  printf '[%s]\n' "$list"
}

keep=()
[ -z "$queue" ] || keep+=(queue)
[ -z "$bucket" ] || keep+=(bucket)
[ "$spot" = 0 ] || keep+=(spot)
[ "$hosts" = 1 ] || keep+=(hosts)

fill() {
  local text condition placeholder value line="" wanted
  while IFS= read -r text; do
    case "$text" in
      "#"*) continue ;; # about the template
      *" # if "*)
        wanted=0
        for condition in ${keep[@]+"${keep[@]}"}; do
          [ "${text##* # if }" != "$condition" ] || wanted=1
        done
        [ "$wanted" = 1 ] || continue
        text="${text%% # if *}"
        ;;
    esac
    line+="$text"$'\n'
  done <"$ROOT/launch/gke/$kind.yaml"
  text="$line"
  for placeholder in name namespace queue bucket slices hosts chips image accelerator topology restarts \
    service_account; do
    value="${!placeholder}"
    placeholder="__$(printf '%s' "$placeholder" | tr '[:lower:]' '[:upper:]')__"
    text="${text//$placeholder/$value}"
  done
  # Last, so that nothing in an argument is taken for a placeholder.
  line="$(json "${run[@]}")"
  printf '%s%s%s' "${text%%__ARGUMENTS__*}" "$line" "${text#*__ARGUMENTS__}"
}

# xpk writes the command into a template as it is: what is special to YAML or a shell cannot pass.
submit_xpk() {
  local argument command options
  [ -z "$bucket$queue" ] || fail "with --xpk, a bucket is attached by xpk storage, and xpk has its own queue;" \
    "leave out --bucket and --queue"
  for argument in "${run[@]}"; do
    case "$argument" in
      *[\'\"\\\`\$]* | *$'\n'*)
        fail "xpk cannot hand on $(quote "$argument"): quotes, \\, \` and \$ are lost on its way;" \
          "submit without --xpk"
        ;;
    esac
  done
  need xpk "pip install xpk"
  command="cir-jax $(quote "${run[@]}")"
  options=(--cluster "$xpk" --workload "$name" --docker-image "$image" --max-restarts "$restarts"
    --restart-on-exit-codes 75)
  if [ "$kind" = tpu ]; then
    options+=(--tpu-type "$device" --num-slices "$slices")
    command="CIR_JAX_DISTRIBUTED=auto $command"
  else
    options+=(--device-type "$device" --num-nodes "$nodes")
    # shellcheck disable=SC2016 # for the shell in the pod
    command="CIR_JAX_COORDINATOR=$name-slice-job-0-0.$name:8482 CIR_JAX_PROCESSES=$nodes"' CIR_JAX_PROCESS=$NODE_RANK '"$command"
  fi
  [ "$spot" = 0 ] || options+=(--spot)
  [ -z "$zone" ] || options+=(--zone "$zone")
  [ -z "$project" ] || options+=(--project "$project")
  execute xpk workload create "${options[@]}" --command "$command"
}

if [ -n "$xpk" ]; then
  submit_xpk
elif [ "$DRY_RUN" = 1 ]; then
  fill
else
  need kubectl "install it with gcloud components install kubectl"
  filled="$(fill)"
  printf '%s\n' "$filled" | kubectl create --filename -
  echo "its output: kubectl logs --namespace $namespace --follow --prefix --max-log-requests 64" \
    "--selector jobset.sigs.k8s.io/jobset-name=$name --container cir-jax"
fi
