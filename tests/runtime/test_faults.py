# SPDX-License-Identifier: Apache-2.0
"""One of two processes fails, dies, is stuck or is asked to stop: how both end, what they say."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
HOST = socket.gethostname()


def start(*arguments, program="tests.runtime.cluster_of_stubs", of_second=()):
    """Two processes of a run of stubs, or of another program; the second one may get more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "CIR_JAX_COORDINATOR": f"127.0.0.1:{port}",
        "CIR_JAX_PROCESSES": "2",
        "PYTHONPATH": str(HERE),
        "XLA_FLAGS": "",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", program, *map(str, arguments), *(of_second if process else ())],
            env=environment | {"CIR_JAX_PROCESS": str(process)},
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]


def ends(running, timeout=90):
    """(exit status, last paragraph of what it said, all of it) of each process."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        (process.returncode, re.split("\n(?:stub|cir-jax train): ", text.strip())[-1], text)
        for process, text in zip(running, said, strict=True)
    ]


@pytest.mark.parametrize("process", [0, 1])
def test_one_raises_and_all_say_why(process):
    """Within seconds; jax alone waits for five minutes and then aborts."""
    found = ends(start("raise", process))
    for i, (status, last, said) in enumerate(found):
        assert status == 1, said
        assert "MemoryError: no memory" in last and f"process {process} on {HOST}" in last
        assert ("Traceback" in said.partition("MemoryError")[0]) or i != process


@pytest.mark.parametrize("process", [0, 1])
def test_one_is_killed_and_the_other_names_it(process):
    found = ends(start("kill", process))
    assert found[process][0] == -signal.SIGKILL
    status, last, said = found[1 - process]
    assert status == 1, said
    assert last.startswith(f"process {process} on {HOST} ") and "killed" in last
    assert last.endswith("the same command resumes the run")
    assert "Check failure stack trace" not in said  # jax's own end is a stack of C++


def test_one_that_does_not_answer_is_named():
    running = start("freeze", 0)
    status, last, said = ends(running[1:])[0]
    running[0].kill()
    running[0].communicate(timeout=60)
    assert status == 1, said
    assert f"process 0 on {HOST} is gone (no answer for" in last


def test_one_is_stuck_and_all_say_who_is_late():
    for status, last, said in ends(start("stuck", 1)):
        assert status == 1, said
        assert f"process 1 on {HOST} is late, in 'read' of step 6" in last


def test_one_is_asked_and_all_stop_at_one_step():
    found = ends(start("term", 1))
    assert [status for status, *_ in found] == [75, 75], found
    steps = {said.partition("ended after step ")[2].split()[0] for *_, said in found}
    assert len(steps) == 1 and 6 <= int(steps.pop()) < 40


def test_one_is_asked_where_it_cannot_meet_the_others():
    for status, last, said in ends(start("term in evaluation", 1)):
        assert status == 75, said
        assert f"stopped by SIGTERM asked of process 1 on {HOST}" in last
        assert "The same command goes on" in last


def test_processes_that_differ_are_refused():
    for status, last, said in ends(start("differ", 1)):
        assert status == 2, said
        assert f"process 1 on {HOST} differs from process 0 on {HOST}: config seed: 8 inst" in last
        assert "version of jax" not in last and "resumes" not in last


def test_a_config_that_one_refuses_is_told_to_the_other():
    """Before they are connected: the other one would wait for `cluster.connect_seconds`."""
    command = ("train", "--config", "clip_sum:quicktest")
    program = {"program": "cir_jax.main", "of_second": ("--set", "batc=8")}
    first, second = ends(start(*command, **program))
    assert (first[0], second[0]) == (2, 2), first[2] + second[2]
    for _, last, _ in (first, second):
        assert "unknown config key 'batc'" in last and f"process 1 on {HOST}" in last


WATCHED = """
import os, signal, sys, threading, time
from cir_jax.runtime import supervision, watchdog
from cir_jax.runtime.limits import Limits
assert "jax" not in sys.modules
with supervision.command("watched") as watcher:
    watcher.limits = Limits(stuck=2, compiling=60, grace=2)
    phase, made, saved, signals = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    watcher.counts(lambda: (made, saved))
    watcher.before_exit(lambda: print("let go", flush=True))
    watchdog.progress(phase, made)
    for name in signals:
        time.sleep(0.3)
        os.kill(os.getpid(), getattr(signal, name))
    end = time.monotonic() + 20
    while not (watcher.asked and phase == "step") and time.monotonic() < end:
        time.sleep(0.1)
print("went on")
"""


def watched(phase, made, saved, *signals):
    """(status, what it said) of a process that hears these signals in this phase, without jax."""
    command = [sys.executable, "-c", WATCHED, phase, str(made), str(saved), *signals]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("phase", ["start", "restore", "bank", "compile", "evaluation"])
def test_a_signal_where_nothing_is_lost_ends_at_once(phase):
    status, said = watched(phase, 8, 8, "SIGTERM")
    assert status == 75, said
    assert said.startswith("let go\n") and "step 8 is saved. The same command goes on" in said


def test_a_signal_where_there_is_no_time_to_save_says_what_is_lost():
    status, said = watched("compile", 8, 5, "SIGTERM")
    assert status == 75, said
    assert "no time to save steps 6 to 8 within checkpoint.grace_seconds=2" in said


def test_a_signal_in_a_step_is_left_to_the_loop():
    assert watched("step", 8, 5, "SIGTERM", "SIGTERM") == (0, "went on\n")  # two are one request


def test_a_second_interrupt_ends_at_once():
    status, said = watched("save", 8, 5, "SIGINT", "SIGINT")
    assert status == 130 and "ended at a second Ctrl-C" in said


def test_a_process_alone_that_is_stuck_ends():
    status, said = watched("read", 8, 5)
    assert status == 1
    assert "watched: no progress for 2 s" in said and "is late, in 'read' of step 8" in said


def test_a_process_that_was_suspended_is_not_late():
    """Stopped for longer than the limit, as a laptop that sleeps: it goes on."""
    code = WATCHED.replace("stuck=2", "stuck=6").replace("+ 20", "+ 8")
    running = subprocess.Popen(
        [sys.executable, "-c", code.replace("0.1)", "0.1); watchdog.progress()"), "read", "1", "1"],
        env=os.environ | {"PYTHONPATH": str(HERE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    running.send_signal(signal.SIGSTOP)
    time.sleep(6.5)
    running.send_signal(signal.SIGCONT)
    assert running.communicate(timeout=60)[0] == "went on\n" and running.returncode == 0


def test_process_0_that_is_not_there_is_named(monkeypatch):
    from cir_jax.errors import UserError
    from cir_jax.runtime.relay import Relay

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(UserError, match=rf"process 0 cannot be reached at 127.0.0.1:{port} within"):
        Relay(f"127.0.0.1:{port}", 0.3)
    with pytest.raises(UserError, match="coordinator 'nowhere' is no host:port"):
        Relay("nowhere", 0.3)


def test_a_signal_after_the_work_leaves_its_status():
    """While the interpreter ends, for half a second with jax, nothing listens to signals."""
    program = (
        "import atexit, os, signal, sys\nfrom cir_jax import main\nmain.main = lambda: 0\n"
        "for number in (signal.SIGTERM, signal.SIGINT):\n"
        "    atexit.register(os.kill, os.getpid(), number)\n"
        "sys.exit(main.program())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
