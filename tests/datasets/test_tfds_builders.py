# SPDX-License-Identifier: Apache-2.0
"""Packed data sets read back as the originals, bit for bit, and TensorFlow is never imported."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from cir_jax.data.inspection import inspect_images
from cir_jax.data.pixels import Preprocess, open_image
from cir_jax.data.screening import DECODE, LOOK, scan
from cir_jax.datasets import records, tfds_builders
from cir_jax.datasets.readers import cirr, fashioniq
from cir_jax.errors import UserError
from tests import runs

WRITE = {"fashioniq": runs.write_fashioniq, "cirr": runs.write_cirr}
READ = {"fashioniq": fashioniq, "cirr": cirr}


@pytest.mark.parametrize("dataset", WRITE)
def test_packed_equals_original(dataset, tmp_path):
    root = WRITE[dataset](tmp_path / "root")
    code = (
        "import sys; from cir_jax.main import main\n"
        "status = main(['pack', *sys.argv[1:]])\n"
        "sys.exit(status or ('tensorflow' in sys.modules) * 7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, dataset, str(root), str(tmp_path / "out")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        want, got = (
            READ[dataset].read(root, split)[0],
            READ[dataset].read(tmp_path / "out", split)[0],
        )
        assert want.triplets == got.triplets
        assert not inspect_images(got.paths).unusable()
        preprocess = Preprocess(16)
        for name in list(want.paths)[:4]:
            record = pickle.loads(pickle.dumps(got.paths[name]))
            assert record.read_bytes() == Path(want.paths[name]).read_bytes()
            assert (preprocess(record) == preprocess(want.paths[name])).all()
    builder = tfds_builders.BUILDERS[dataset](
        root=root, config="triplets", data_dir=str(tmp_path / "out" / "packed")
    )
    source = builder.as_data_source(split="val")
    triplets = READ[dataset].read(root, "val")[0].triplets
    assert len(source) == len(triplets)
    assert source[3]["reference"].decode() == triplets[3].reference
    assert tuple(t.decode() for t in source[3]["texts"]) == triplets[3].texts


def test_errors(tmp_path):
    root = runs.write_fashioniq(tmp_path / "root")
    with pytest.raises(UserError, match=r"no builder for 'circo'; there are: fashioniq, cirr"):
        tfds_builders.pack("circo", root, tmp_path / "out")
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        tfds_builders.pack("fashioniq", root, root)
    (root / "images" / "B0001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 24 images of .* cannot be packed: B0001; run `cir-"):
        tfds_builders.pack("fashioniq", root, tmp_path / "out")


def test_a_malformed_split_is_not_left_out(tmp_path):
    root = runs.write_cirr(tmp_path / "root")
    (root / "cirr/captions/cap.rc2.val.json").write_text("[{]")
    with pytest.raises(UserError, match=r"cap.rc2.val.json is no JSON"):
        tfds_builders.pack("cirr", root, tmp_path / "out")


def test_images_inside_the_annotations_are_not_copied(tmp_path):
    root = runs.write_cirr(tmp_path / "root")
    for name in ("train", "dev", "test1"):
        (root / "cirr/img_raw").mkdir(exist_ok=True)
        (root / name).rename(root / "cirr/img_raw" / name)
    out = tfds_builders.pack("cirr", root, tmp_path / "out")
    assert not list(out.rglob("*.png"))
    assert not inspect_images(cirr.read(out, "val")[0].paths).unusable()


def test_a_damaged_record_is_an_image_that_cannot_be_used(tmp_path):
    out = tfds_builders.pack("cirr", runs.write_cirr(tmp_path / "root"), tmp_path / "out")
    images = records.images(out)
    assert not scan(images, LOOK)
    [packed] = out.rglob("*pictures.array_record*")
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 255
    packed.write_bytes(content)
    records._source.cache_clear()
    for depth in (LOOK, DECODE):
        found = scan(images, depth)
        [problem] = found.values()
        assert problem.reason == "not readable" and "its file is damaged: Corr" in problem.why
    with pytest.raises(UserError, match=r"image .* cannot be read .*its file is damaged"):
        open_image(images[next(iter(found))])
