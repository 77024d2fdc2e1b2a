# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a Slurm cluster: jobs run at once, here, and again while they are queued again.

Under `root`:
  plan/I         what task I does, a line for each start: an exit status, or "stay" until TERM,
                 "lost" with its node, or "late": 1 after a second
  state          what `scontrol show job` says after the step (RUNNING if there is none)
  signal         the step gets TERM once all tasks are on, as --signal does before the time limit
  cancel         the same, and the batch script too, as scancel does
  node           what `scontrol show node` says (ALLOCATED if there is none)
  no_requeue     `scontrol requeue` is refused
  sbatch, srun   how the programs were called, a line each
"""

import os

from tests.launch import calls

SBATCH = r"""#!/usr/bin/env bash
echo "$*" >>"$SLURM/sbatch"
[ ! -f "$SLURM/queued" ] || exit 0
touch "$SLURM/queued" # a job that queues another does not run it
output=""
while [ "${1#-}" != "$1" ]; do
  case "$1" in
    --output) output="$2" ;;
  esac
  case "$1" in
    *=* | --requeue) shift ;;
    *) shift 2 ;;
  esac
done
cp "$1" "$SLURM/spooled" # as Slurm does
shift
output="${output//%j/12}"
count=0
while true; do
  rm -f "$SLURM/again"
  export SLURM_JOB_ID=12 SLURM_NTASKS="$TASKS" SLURM_RESTART_COUNT="$count"
  bash "$SLURM/spooled" "$@" >>"$output" 2>&1 &
  echo $! >"$SLURM/batch"
  status=0
  wait $! || status=$?
  [ -f "$SLURM/again" ] || break
  count=$((count + 1))
done
echo "$status" >"$SLURM/status"
"""

SRUN = r"""#!/usr/bin/env bash
echo "$*" >>"$SLURM/srun"
while [ "$1" != bash ]; do
  [ "$1" != --output ] || output="$2"
  shift
done
rm -f "$SLURM"/on*
set -m # a group for each task: Slurm signals all processes of one
tasks=()
for ((i = 0; i < TASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST="node[1-2]" "$@" \
    >>"${output//%t/$i}" 2>&1 </dev/null &
  tasks+=($!)
done
set +m
if [ -f "$SLURM/signal" ] || [ -f "$SLURM/cancel" ]; then
  for ((i = 0; i < TASKS; i++)); do until [ -f "$SLURM/on$i" ]; do sleep 0.05; done; done
  [ ! -f "$SLURM/cancel" ] || kill -TERM "$(cat "$SLURM/batch")"
  for task in "${tasks[@]}"; do kill -TERM -- "-$task"; done
  rm -f "$SLURM/signal"
fi
worst=0
for task in "${tasks[@]}"; do
  status=0
  wait -n || status=$?
  # --kill-on-bad-exit; a task that went with its node does not say how it ended
  if [ "$status" != 0 ] && [ "$status" != 137 ]; then
    for task in "${tasks[@]}"; do kill -TERM -- "-$task" 2>/dev/null; done
  fi
  [ "$status" -le "$worst" ] || worst=$status
done
exit "$worst"
"""

SCONTROL = r"""#!/usr/bin/env bash
case "$1 $2" in
  "show hostnames") printf 'node1\nnode2\n' ;;
  "show job")
    echo "JobId=$3 JobName=cir_jax"
    state="$(cat "$SLURM/state" 2>/dev/null || echo RUNNING)"
    echo "   JobState=$state Reason=None Dependency=(null)"
    ;;
  "show node") echo "NodeName=node2 State=$(cat "$SLURM/node" 2>/dev/null || echo ALLOCATED) X=1" ;;
  requeue*)
    if [ -f "$SLURM/no_requeue" ]; then
      echo "Requested operation is presently disabled for job $2" >&2
      exit 1
    fi
    touch "$SLURM/again"
    ;;
esac
"""

RUN = r"""#!/usr/bin/env bash
[ -n "${SLURM_PROCID:-}" ] || exit 0 # the check before the job
plan="$SLURM/plan/$SLURM_PROCID"
does="$(head -n 1 "$plan" 2>/dev/null || echo 0)"
sed -i 1d "$plan" 2>/dev/null
echo "${CIR_JAX_DISTRIBUTED:-} ${CIR_JAX_COORDINATOR:-} ${CIR_JAX_PROCESSES:-} ${CIR_JAX_PROCESS:-}"
echo "says why in task $SLURM_PROCID"
case "$does" in
  stay)
    asked=0 ticks=0
    trap 'asked=$((asked + 1))' TERM
    touch "$SLURM/on$SLURM_PROCID"
    for _ in {1..600}; do
      sleep 0.1
      [ "$asked" = 0 ] || ticks=$((ticks + 1))
      [ "$asked" -lt 2 ] || exit 9 # a second signal ends it unsaved
      [ "$ticks" -lt $((2 + 3 * SLURM_PROCID)) ] || { echo saved && exit 75; }
    done
    ;;
  late) # as one that misses another
    sleep 1
    exit 1
    ;;
  lost) # with its node: nobody notes a status
    kill -KILL "$PPID"
    exit 1
    ;;
  *) exit "$does" ;;
esac
"""


class Slurm:
    """The folder `root` as a cluster with `tasks` tasks a job; its programs are in `bin`."""

    def __init__(self, root, tasks, bin):
        (root / "plan").mkdir(parents=True)
        self.root = root
        for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
            calls.program(bin / name, text)
        self.environment = {"SLURM": str(root), "TASKS": str(tasks), "CIR_JAX_NODE_WAIT": "0"}
        self.environment["PATH"] = f"{bin}:{os.environ['PATH']}"

    def plan(self, *tasks):
        """What each task does at each start."""
        for number, starts in enumerate(tasks):
            (self.root / "plan" / str(number)).write_text("".join(f"{x}\n" for x in starts))

    def read(self, name):
        """A file of `root`, or ""."""
        file = self.root / name
        return file.read_text() if file.exists() else ""
