# SPDX-License-Identifier: Apache-2.0
"""Programs that one process of the tests compiled are read by the next; the folder stays small."""

import os
import subprocess
import sys

from tests import programs

COUNTS = """
import jax
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
assert jax.device_count() == 8
print(jax.jit(lambda x: (x * 3).sum())(jax.numpy.arange(5.0)))
print(sum(name.endswith("/cache_hits") for name in found))
print(sum(name.endswith("/cache_misses") for name in found))
"""


def test_another_process_compiles_nothing(tmp_path):
    """As the environment of the tests says, which processes that they start inherit."""
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COUNTS],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and not done.stderr, done.stderr
        said.append(done.stdout.split())
    (first, _, compiled), (second, read, again) = said
    assert first == second == "30.0"
    assert int(compiled) > 0 and int(read) >= int(compiled) and int(again) == 0


def test_what_was_written_first_goes(tmp_path):
    for age, name in enumerate(["new", "old", "oldest"]):
        file = tmp_path / f"{name}-cache"
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "something else").write_bytes(bytes(1000))
    programs.drop_oldest(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 4
    programs.drop_oldest(tmp_path, 250)
    assert {file.name for file in tmp_path.iterdir()} == {
        "new-cache", "old-cache", "something else"
    }  # fmt: skip
    programs.drop_oldest(tmp_path / "not there", 0)
