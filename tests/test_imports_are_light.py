# SPDX-License-Identifier: Apache-2.0
"""A command imports what it uses: help, a typo or a check of files waits for no jax or PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cir_jax import plugins
from cir_jax.main import COMMANDS
from cir_jax.runtime import metrics
from tests import runs
from tests.datasets.importer_samples import MEGAPAIRS, lines
from tests.generation import pictures

HERE = Path(__file__).parents[1]
HEAVY = {
    "jax", "flax", "optax", "orbax", "grain", "torch", "transformers", "huggingface_hub",
    "tokenizers", "tensorflow", "tensorflow_datasets", "tensorboardX", "pyarrow", "openai",
    "httpx2", "anyio", "fastapi", "uvicorn", "pydantic", "prometheus_client", "mcp",
}  # fmt: skip
# Not of a trainer; grain imports prometheus_client where that is installed.
OF_OTHERS = HEAVY - {"jax", "flax", "optax", "orbax", "grain", "tokenizers", "prometheus_client"}
REPORT = "\nimport sys; print('imported:', *sys.modules)"
COMMAND = """
import sys
from cir_jax.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as stopped:
    status = stopped.code
print("status:", status)
"""


def after(code, *arguments):
    """(heavy packages that a new process holds after `code`, its output, its errors)."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT, *map(str, arguments)],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said, _, names = done.stdout.rpartition("imported:")
    return HEAVY & {n.partition(".")[0] for n in names.split()}, said, done.stderr


def test_the_package():
    assert after("import cir_jax")[0] == set()


@pytest.mark.parametrize(
    "command", ["", *(name.rstrip("_") for name in plugins.available(COMMANDS))]
)
def test_help(command):
    heavy, said, _ = after(COMMAND, *command.split(), "--help")
    assert heavy == set() and "usage: cir-jax" in said and "status: 0" in said


def test_a_data_set_that_is_not_there():
    heavy, said, errors = after(COMMAND, "doctor", "fashioniq", "NOWHERE")
    assert heavy == set() and "status: 2" in said and "no FashionIQ annotations" in errors


def test_a_data_set_that_is(tmp_path):
    """Hashes of pixels are taken where Pillow has them, which needs pyarrow and nothing else."""
    runs.write_fashioniq(tmp_path, triplets=2)
    heavy, said, _ = after(COMMAND, "doctor", "fashioniq", tmp_path)
    assert heavy == {"pyarrow"} and "fashioniq in" in said
    heavy, said, _ = after(COMMAND, "doctor", "fashioniq", tmp_path, "--no-decode")
    assert heavy == set() and "fashioniq in" in said


def test_triplets_of_json_lines(tmp_path):
    source = lines(tmp_path / "a.jsonl", [MEGAPAIRS])
    heavy, said, _ = after(COMMAND, "triplets", "megapairs", source, tmp_path / "o.jsonl")
    assert heavy == set() and "wrote 1 triplets" in said


def test_positives_that_ask_no_trained_model(tmp_path):
    root, counting = pictures.folder(tmp_path / "in", 4), pictures.Counting(tmp_path)
    heavy, said, _ = after(COMMAND, *pictures.flags(tmp_path / "made", root, *counting.sets))
    assert heavy == {"pyarrow", "tokenizers"} and "triplets of 3 captioned images" in said
    assert json.loads((tmp_path / "made/results.json").read_text())["triplets"] == 3


def test_a_typo_in_the_name_of_a_data_set():
    flags = ["--config", "clip_sum:emoji", "--set", "data.name=fashoniq"]
    heavy, said, errors = after(COMMAND, "train", *flags)
    assert not heavy & OF_OTHERS and "status: 2" in said
    assert "no 'fashoniq' in readers" in errors and "Did you mean 'fashioniq'" in errors


def test_the_trainer():
    heavy, _, _ = after("import cir_jax.training.train")
    assert not heavy & OF_OTHERS and {"jax", "flax"} <= heavy


def test_metrics_wait_for_no_pytorch(tmp_path):
    """tensorboardX imports it where it is installed, as it is here, and needs none of it."""
    code = "import sys\nfrom cir_jax.runtime import metrics\n"
    code += "log = metrics.Logger(sys.argv[1])\nlog.write(1, {'loss': 2.0})\nlog.close()\n"
    heavy, _, _ = after(code, tmp_path)
    assert "tensorboardX" in heavy and "torch" not in heavy
    assert list((tmp_path / "tensorboard").iterdir()) and metrics.read(tmp_path / metrics.FILE)
