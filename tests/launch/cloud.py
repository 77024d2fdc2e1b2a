# SPDX-License-Identifier: Apache-2.0
"""A stand-in for gcloud: requests and slices whose states follow transcripts, and workers that are
folders here. What it says in each state and error is what the real one says.

Under `root`:
  requests, nodes            the states that looks will find, a line each; the last one stays.
                             "-" is "not found", "!NAME" the error NAME
  plan/I.requests, I.nodes   the same, put in place by the creation number I (from 1)
  plan/create                an error for the next creation
  ssh_fails, scp_fails       workers that do not answer, copies that do not arrive
  worker0, worker1, ...      the home folders of the workers
  calls                      how gcloud was called
"""

from tests.launch import calls

# {kind} is nodes or queuedResources.
ERRORS = {
    "denied": "PERMISSION_DENIED: Permission 'tpu.{kind}.get' denied on "
    "'projects/p/locations/us-central1-a/{kind}/my-pod' (or it may not exist). This command is "
    "authenticated as me@example.com which is the active account specified by the [core/account] "
    "property.",
    "off": "PERMISSION_DENIED: Cloud TPU API has not been used in project 12 before or it is "
    "disabled. Enable it by visiting "
    "https://console.developers.google.com/apis/api/tpu.googleapis.com/overview?project=12 then "
    "retry. If you enabled this API recently, wait a few minutes for the action to propagate to "
    "our systems and retry.",
    "account": "You do not currently have an active account selected.\nPlease run:\n\n"
    "  $ gcloud auth login\n\nto obtain new credentials.",
    "zone": "NOT_FOUND: Location us-central1-a is not found or access is unauthorized.",
    "busy": "UNAVAILABLE: The service is currently unavailable.",
    "rate": "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests' and limit 'Read "
    "requests per minute' of service 'tpu.googleapis.com' for consumer 'project_number:12'.",
    "quota": "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been "
    "exceeded. Limit: 0 in zone us-central1-a.",
    "stockout": '{{\n  "code": 8,\n  "message": "There is no more capacity in the zone '
    '\\"us-central1-a\\"; you can try in another zone where Cloud TPU Nodes are offered '
    '(see https://cloud.google.com/tpu/docs/regions)"\n}}',
    "-": "NOT_FOUND: Resource 'projects/p/locations/us-central1-a/{kind}/my-pod' was not found",
}

GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >>"$CLOUD/calls"
cd "$CLOUD" || exit 9
[ "$1" != alpha ] || shift
say() { # NAME KIND
  sed "s/{kind}/$2/g" "errors/$1" | sed "1s/^/ERROR: (gcloud.compute.tpus.$command) /" >&2
  exit 1
}
next() { # FILE: sets now, and goes on to the next line
  now="$(head -n 1 "$1" 2>/dev/null)"
  [ "$(wc -l 2>/dev/null <"$1" || echo 0)" -lt 2 ] || sed -i 1d "$1"
}
command="$3.$4" file=nodes kind=nodes
[ "$3" = tpu-vm ] || { file=requests kind=queuedResources; }
case "$4" in
  describe)
    case "$*" in
      *failedData*) cat reason 2>/dev/null; exit 0 ;;
    esac
    next "$file"
    case "$now" in
      "" | -) say - "$kind" ;;
      !*) say "${now#!}" "$kind" ;;
    esac
    echo "$now"
    ;;
  create)
    if [ -f plan/create ]; then
      error="$(cat plan/create)" && rm plan/create && say "$error" "$kind"
    fi
    number=$(($(cat created 2>/dev/null || echo 0) + 1))
    echo "$number" >created
    for file in requests nodes; do
      if [ -f "plan/$number.$file" ]; then cp "plan/$number.$file" "$file"; fi
    done
    ;;
  delete)
    rm -f requests nodes
    for worker in worker*; do rm -rf "$worker" && mkdir "$worker"; done
    ;;
  start) printf 'STARTING\nREADY\n' >nodes ;;
  ssh | scp)
    next nodes
    case "$now" in
      READY) ;;
      *)
        echo "ERROR: (gcloud.compute.tpus.$command) This TPU has state \"$now\", so it cannot be" \
          "currently connected to." >&2
        exit 1
        ;;
    esac
    if [ -f "$4_fails" ]; then
      echo "ssh: connect to host 10.0.0.2 port 22: Connection timed out" >&2
      exit 255
    fi
    which="$*" && which="${which#*--worker }" && which="${which%% *}" status=0
    [ "$which" != all ] || which="$(echo worker* | sed 's/worker//g')"
    for i in $which; do
      if [ "$4" = scp ]; then
        cp "$5" "worker$i/${6#*:}"
        continue
      fi
      words=("$@")
      for ((n = 0; n < $#; n++)); do [ "${words[n]}" != --command ] || asked="${words[n + 1]}"; done
      (cd "worker$i" && HOME="$PWD" WORKER="$i" LOG="$PWD/log" bash -c "$asked") || status=$?
    done
    exit "$status"
    ;;
esac
"""

# The run: what it does is the next line of the plan of its worker.
CIR_JAX = r"""#!/usr/bin/env bash
[ -n "${WORKER:-}" ] || exit 0
plan="$CLOUD/plan/runs$WORKER"
does="$(head -n 1 "$plan" 2>/dev/null || echo 0)"
sed -i 1d "$plan" 2>/dev/null
echo "$CIR_JAX_DISTRIBUTED: $*"
case "$does" in
  stay)
    asked=0 ticks=0
    trap 'asked=$((asked + 1))' TERM
    touch "$CLOUD/on$WORKER"
    for _ in {1..600}; do
      sleep 0.1
      [ "$asked" = 0 ] || ticks=$((ticks + 1))
      [ "$asked" -lt 2 ] || exit 9 # a second signal ends it unsaved
      [ "$ticks" -lt 3 ] || { echo saved && exit 75; }
    done
    ;;
  *)
    echo "says why on worker $WORKER"
    exit "$does"
    ;;
esac
"""


class Cloud:
    """The folder `root` as a cloud with `workers` workers, and the programs on the path `bin`."""

    def __init__(self, root, workers, bin):
        self.root = root
        for i in range(workers):
            (root / f"worker{i}").mkdir(parents=True)
        for folder in ("plan", "errors"):
            (root / folder).mkdir()
        for name, text in ERRORS.items():
            text = text.replace("{{", "{").replace("}}", "}")
            (root / "errors" / name).write_text(text + "\n")
        calls.program(bin / "gcloud", GCLOUD)
        calls.program(bin / "curl", '#!/bin/sh\necho "$WORKER"\n')
        calls.program(bin / "sudo", "#!/bin/sh\nexit 1\n")
        calls.program(bin / "hostname", '#!/bin/sh\necho "w$WORKER"\n')
        self.runs = calls.program(root / "cir-jax", CIR_JAX)
        self.environment = {"CLOUD": str(root), "RUNS": str(self.runs), "CIR_JAX_POLL": "0"}

    def states(self, file, *lines):
        """What looks at `requests`, `nodes` or `plan/...` will find."""
        (self.root / file).write_text("".join(f"{line}\n" for line in lines))

    @property
    def calls(self):
        """How gcloud was called, a line each."""
        file = self.root / "calls"
        return file.read_text() if file.exists() else ""
