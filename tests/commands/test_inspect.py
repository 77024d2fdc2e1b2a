# SPDX-License-Identifier: Apache-2.0
"""What `cir-jax inspect` prints of strangers' files: nothing that a terminal obeys."""

import numpy as np
import pytest

from cir_jax.convert.containers import safe_tensors, tensors, torch_writer
from cir_jax.main import main

NAMES = ("red\x1b[31m.weight", "two\nlines", "tab\there", "\u202eback", "\x07bell", "plain.weight")
SHOWN = (
    *("red\\x1b[31m.weight", "two\\nlines", "tab\\there", "\\u202eback", "\\x07bell"),
    "plain.weight",
)


def written(place, kind):
    state = {name: tensors.of(np.ones((2, 3), np.float32)) for name in NAMES}
    with place.open("wb") as file:
        if kind == "safetensors":
            safe_tensors.write(file, state, {"format": "pt"})
        else:
            torch_writer.write(file, {"state\x1b[2Jdict": state, "best\x1b]0;x\x07": "a\x1b[0m\nb"})
    return str(place)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_names_of_tensors_are_escaped(kind, tmp_path, capsys):
    assert main(["inspect", written(tmp_path / "w", kind)]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert all(line.isprintable() for line in lines), said
    # One line for each tensor, with its whole name, which can be given back as it is shown.
    assert [line.split("  ")[2] for line in lines if "float32 [2, 3]" in line] == list(SHOWN)
    if kind == "torch":
        assert "  state\\x1b[2Jdict: 6 tensors, 0.0 MB" in lines
        assert "  best\\x1b]0;x\\x07 = a\\x1b[0m\\nb" in lines


def test_messages_about_names_are_escaped(tmp_path, capsys):
    assert main(["inspect", written(tmp_path / "w", "torch") + "::none\x1b[31m"]) == 2
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    assert "has no part 'none\\x1b[31m'" in said.err
