# SPDX-License-Identifier: Apache-2.0
"""launch/local_processes.sh: what its processes are told, and how they end."""

import os
import signal
import subprocess
import sys
import time

from tests.launch.calls import LAUNCH, call, program

# Process 0 hears TERM but stays, as one in a collective does; process 1 fails.
STUCK = """#!/usr/bin/env bash
if [ "$CIR_JAX_PROCESS" = 1 ]; then
  until [ -f "$PLACE/pid" ]; do sleep 0.1; done
  exit 7
fi
trap : TERM
echo $$ >"$PLACE/pid"
for _ in {1..600}; do sleep 0.1; done
"""
SAVES = """#!/usr/bin/env bash
trap 'echo saved >"$PLACE/saved-$CIR_JAX_PROCESS"; exit 0' TERM
echo $$ >"$PLACE/started-$CIR_JAX_PROCESS"
for _ in {1..600}; do sleep 0.1; done
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_files(running, files):
    """Until all of them hold something; fails if `running` ends before."""
    while not all(file.exists() and file.read_text() for file in files):
        assert running.poll() is None
        time.sleep(0.05)


def test_what_processes_are_told(tmp_path):
    show = program(
        tmp_path / "show",
        "#!/bin/sh\n"
        'echo "$CIR_JAX_PROCESS of $CIR_JAX_PROCESSES at $CIR_JAX_COORDINATOR $XLA_FLAGS: $*"\n',
    )
    flags = ["--processes", "3", "--devices", "4", "--logs", str(tmp_path / "logs")]
    done = call(
        "local_processes.sh",
        *flags,
        "train",
        "--config",
        "a b",
        CIR_JAX=str(show),
        XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_dump_to=x",
    )
    assert done.returncode == 0, done.stderr
    others = [(tmp_path / "logs" / f"process-{i}.log").read_text() for i in (1, 2)]
    for i, said in enumerate([done.stdout, *others]):
        assert said.startswith(f"{i} of 3 at 127.0.0.1:")
        assert said.endswith(
            "--xla_dump_to=x --xla_force_host_platform_device_count=4: train --config a b\n"
        )
    assert len({said.split()[4] for said in [done.stdout, *others]}) == 1


def test_late_failure_is_returned(tmp_path):
    fails = program(
        tmp_path / "fails", '#!/bin/sh\n[ "$CIR_JAX_PROCESS" = 0 ] || { sleep 1; exit 5; }\n'
    )
    done = call("local_processes.sh", "train", CIR_JAX=str(fails))
    assert done.returncode == 5 and "ended with status 5; logs" in done.stderr


def test_failure_ends_a_process_that_does_not_listen(tmp_path):
    stuck = program(tmp_path / "stuck", STUCK)
    done = call(
        "local_processes.sh", "--grace", "1", "train", CIR_JAX=str(stuck), PLACE=str(tmp_path)
    )
    assert done.returncode == 7
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_interrupt_lets_all_save(tmp_path):
    saves = program(tmp_path / "saves", SAVES)
    # Where the tests run in the background, the signal is ignored, and a shell keeps to that.
    heard = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    heard += "os.execvp('bash', ['bash', *sys.argv[1:]])"
    running = subprocess.Popen(
        [sys.executable, "-c", heard, str(LAUNCH / "local_processes.sh"), "train"],
        env=os.environ | {"CIR_JAX": str(saves), "PLACE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_for_files(running, [tmp_path / f"started-{i}" for i in (0, 1)])
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert all((tmp_path / f"saved-{i}").exists() for i in (0, 1))
