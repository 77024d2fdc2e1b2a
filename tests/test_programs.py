# SPDX-License-Identifier: Apache-2.0
"""Programs that one process of the tests compiled are read by the next; the folder stays small."""

import os

from tests import programs

START = """
import jax
assert jax.device_count() == 8
"""


def test_another_process_compiles_nothing(tmp_path):
    """As the environment of the tests says, which processes that they start inherit."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    programs.assert_the_second_compiles_nothing(START, environment)


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
