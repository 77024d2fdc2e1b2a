# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154 # name, zone, project and the flags are of the script
# Sourced by launch/tpu_pod.sh: the Cloud TPU API as gcloud gives it, its states and its errors.
#
#   tpus ARG ...          gcloud compute tpus ARG ... in the zone and project of the script
#   describe KIND FIELD   sets ANSWER to the field of the node (tpu-vm) or of the request
#                         (queued-resources), "" if there is none. Another error ends the script with
#                         gcloud's own words, at once or, if it may pass, after CIR_JAX_TRIES calls
#   find_slice            the same for the node or, where there is none, for its request
#   create_slice          asks for the slice, unless it is there, and waits until it can be used
#   delete_slice          deletes the slice and its request, whatever state they are in
#   wait_until_ready      waits while the slice comes up; returns 1 if it has to be made anew

POLL="${CIR_JAX_POLL:-30}" # seconds between two looks
TRIES="${CIR_JAX_TRIES:-10}"
ANSWER=""

tpus() { execute gcloud compute tpus "$@" "${place[@]}"; }

# gcloud asks on the terminal whether an API is to be enabled; here nobody would see the question.
ask() { CLOUDSDK_CORE_DISABLE_PROMPTS=1 gcloud compute tpus "$@" "${place[@]}" </dev/null; }

may_pass() { # WORDS OF gcloud
  case "$1" in
    *" UNAVAILABLE"* | *" INTERNAL"* | *DEADLINE_EXCEEDED* | *" ABORTED"* | *"per minute"* | \
      *"Unable to find the server"* | *"onnection reset"* | *"onnection aborted"* | *"timed out"* | \
      *"Max retries exceeded"* | *"Network is unreachable"* | *"TransportError"*) return 0 ;;
  esac
  return 1
}

remedy() { # WORDS OF gcloud
  case "$1" in
    *"has not been used in project"* | *"it is disabled"* | *SERVICE_DISABLED*)
      echo "enable the API: gcloud services enable tpu.googleapis.com${project:+ --project $project}"
      ;;
    *"uth login"* | *UNAUTHENTICATED* | *eauthentication*) echo "log in: gcloud auth login" ;;
    *PERMISSION_DENIED* | *"does not have permission"*)
      echo "your account needs the role roles/tpu.admin in this project; see gcloud auth list"
      ;;
    *"uota"*) echo "ask for quota of this type in this zone, or name another --zone or --type" ;;
    *"no more capacity"*) echo "try another zone, or without --direct, which waits in the queue" ;;
    *) echo "the words above are gcloud's" ;;
  esac
}

refuse() { # WHAT WORDS OF gcloud
  printf '%s\n' "$2" >&2
  fail "$1; $(remedy "$2")"
}

describe() { # KIND FIELD
  local words try=1
  while true; do
    if ANSWER="$(ask "$1" describe "$name" --format "value($2)" 2>"$scratch/errors")"; then
      return 0
    fi
    words="$(cat "$scratch/errors")"
    ANSWER=""
    case "$words" in
      *NOT_FOUND*"/$name'"* | *NOT_FOUND*"/$name\""* | *NOT_FOUND*"/$name "*) return 0 ;;
    esac
    may_pass "$words" || refuse "the state of $name cannot be read" "$words"
    [ "$try" -lt "$TRIES" ] || refuse "the state of $name could not be read $TRIES times" "$words"
    echo "$name: no answer, asked again: ${words%%$'\n'*}" >&2
    try=$((try + 1))
    sleep "$POLL"
  done
}

before=""
report() { # STATE; each change once, since a wait can take days
  [ "$1" = "$before" ] || echo "$(date -u +%H:%M:%S) $name: $1"
  before="$1"
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

create_options() { # sets options; the same for a node and for a request of one
  options=(--accelerator-type "$type")
  [ "$spot" = 0 ] || options+=(--spot)
  [ "$reserved" = 0 ] || options+=(--reserved)
  [ "$internal_ips" = 0 ] || options+=(--internal-ips)
  [ -z "$network" ] || options+=(--network "$network")
  [ -z "$subnetwork" ] || options+=(--subnetwork "$subnetwork")
  [ -z "$service_account" ] || options+=(--service-account "$service_account")
  [ -z "$scopes" ] || options+=(--scopes "$scopes")
  [ -z "$labels" ] || options+=(--labels "$labels")
  local disk
  for disk in ${data_disks[@]+"${data_disks[@]}"}; do options+=(--data-disk "$disk"); done
}

# Sets ANSWER to the state of the node or, where there is none yet, to that of its request.
find_slice() {
  describe tpu-vm state
  if [ -z "$ANSWER" ] && [ "$direct" = 0 ]; then describe queued-resources state.state; fi
}

request_slice() {
  local options runtime="$version"
  [ -n "$runtime" ] || runtime="$(runtime_version)"
  create_options
  if [ "$direct" = 1 ]; then
    create_words tpu-vm create "$name" "${options[@]}" --version "$runtime"
  else
    create_words queued-resources create "$name" --node-id "$name" "${options[@]}" \
      --runtime-version "$runtime"
  fi
}

create_slice() {
  if [ "$DRY_RUN" = 1 ]; then
    request_slice
    return 0
  fi
  find_slice
  if [ -n "$ANSWER" ]; then
    echo "$name exists already and is used"
  else
    request_slice
  fi
  wait_until_ready || fail "$name is ${before:-gone}; delete it and create it again, as babysit does"
}

create_words() { # COMMAND ...; with a remedy below gcloud's own words
  if [ "$DRY_RUN" = 1 ]; then
    tpus "$@"
  elif ! tpus "$@" 2> >(tee "$scratch/errors" >&2); then
    sleep 0.2 # until tee has written
    fail "$name was not created; $(remedy "$(cat "$scratch/errors")")"
  fi
}

why_failed() {
  describe queued-resources state.failedData.error.message
  [ -z "$ANSWER" ] || echo "$name: $ANSWER" >&2
}

# The node is looked at first: of a slice that runs, its request says ACTIVE for some time after the
# slice was taken away.
wait_until_ready() {
  local unknown=0
  before=""
  while true; do
    describe tpu-vm state
    if [ -z "$ANSWER" ] && [ "$direct" = 0 ]; then
      describe queued-resources state.state
      report "${ANSWER:-no request}"
      case "$ANSWER" in
        CREATING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES | STATE_UNSPECIFIED) ;;
        ACTIVE) unknown=$((unknown + 1)) ;; # and no node: it comes in a moment, or was deleted
        FAILED)
          why_failed
          return 1
          ;;
        SUSPENDING | SUSPENDED | DELETING | "") return 1 ;;
        *) unknown=$((unknown + 1)) ;;
      esac
    else
      report "${ANSWER:-no slice}"
      case "$ANSWER" in
        READY) return 0 ;;
        CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | STOPPING | UNHIDING) ;;
        STOPPED) tpus tpu-vm start "$name" ;;
        PREEMPTED | TERMINATED | DELETING | HIDING | HIDDEN | UNKNOWN | "") return 1 ;;
        *) unknown=$((unknown + 1)) ;; # STATE_UNSPECIFIED, or one that is newer than this script
      esac
    fi
    [ "$unknown" -lt "$TRIES" ] || return 1
    sleep "$POLL"
  done
}

# With its request: one that is left would refuse the same name. Of a request only --force deletes
# the slice as well.
delete_slice() {
  if [ "$DRY_RUN" = 1 ]; then
    if [ "$direct" = 1 ]; then
      tpus tpu-vm delete "$name" --quiet
    else
      tpus queued-resources delete "$name" --force --quiet
    fi
    return 0
  fi
  local asked=""
  before=""
  while true; do # its name is free only when all of it is gone
    describe queued-resources state.state
    if [ -n "$ANSWER" ]; then
      report "request $ANSWER"
      case "$ANSWER$asked" in
        DELETING* | *request*) ;;
        *) asked=request && tpus queued-resources delete "$name" --force --quiet && continue ;;
      esac
    else
      describe tpu-vm state
      if [ -z "$ANSWER" ]; then
        [ -n "$before" ] || echo "there is no $name"
        return 0
      fi
      report "$ANSWER"
      case "$ANSWER$asked" in
        DELETING* | *node*) ;;
        *) asked=node && tpus tpu-vm delete "$name" --quiet && continue ;;
      esac
    fi
    sleep "$POLL"
  done
}
