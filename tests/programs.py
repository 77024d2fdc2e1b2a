# SPDX-License-Identifier: Apache-2.0
"""The folder in which jax keeps the compiled programs of the tests, for later runs."""

import subprocess
import sys

from jax._src import compiler

# Prints a number, how many programs were read and how many were compiled.
COUNTS = """
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
print(jax.jit(lambda x: (x * 3).sum())(jax.numpy.arange(5.0)))
print(sum(name.endswith("/cache_hits") for name in found))
print(sum(name.endswith("/cache_misses") for name in found))
"""
LIMIT = 2**30  # bytes; a run of all tests writes a fifth of that


def drop_oldest(folder, limit):
    """Removes the files that were written first, until `limit` bytes are left.

    jax can bound the folder itself, but then reads all of it whenever it writes a program.
    """
    files = [(file.stat(), file) for file in folder.glob("*-cache")]
    total = 0
    for status, file in sorted(files, key=lambda f: -f[0].st_mtime):
        total += status.st_size
        if total > limit:
            file.unlink(missing_ok=True)  # another run may be at it


def cache_those_of_one_device():
    """Keeps programs for several devices out of the folder: see `cir_jax.runtime.mesh`."""
    read, write = compiler._cache_read, compiler._cache_write

    def read_one(module, key, options, *rest):
        several = options.executable_build_options.num_partitions > 1
        return (None, None) if several else read(module, key, options, *rest)

    def write_one(key, seconds, module, backend, executable, *rest):
        if len(executable.local_devices()) == 1:
            write(key, seconds, module, backend, executable, *rest)

    compiler._cache_read, compiler._cache_write = read_one, write_one


def assert_the_second_compiles_nothing(start, environment):
    """Of two processes one after the other that run `start`, which imports jax, and COUNTS."""
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", start + COUNTS],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        said.append(done.stdout.split())
    (first, _, compiled), (second, read, again) = said
    assert first == second == "30.0"
    assert int(compiled) > 0 and int(read) >= int(compiled) and int(again) == 0
