# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: sizes of the released pipeline, sources of an image, broken files, options."""

import io

import numpy as np
import pytest
from PIL import Image

from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError

# (width, height) -> size after TargetPad(1.25), size after the resize to 288: released code.
TARGET = {
    (400, 600): ((480, 600), (288, 360)),
    (401, 600): ((479, 600), (288, 360)),
    (37, 90): ((71, 90), (288, 365)),
    (1000, 333): ((1000, 799), (360, 288)),
    (640, 480): ((640, 512), (360, 288)),
    (480, 600): ((480, 600), (288, 360)),
}
SQUARE = {(401, 600): (599, 600), (37, 90): (89, 90)}


@pytest.mark.parametrize("size", TARGET)
def test_target_pad_sizes(size):
    preprocess = Preprocess(288, "target")
    left, top = preprocess.padding(*size)
    padded = (size[0] + 2 * left, size[1] + 2 * top)
    assert (padded, preprocess.resized(*padded)) == TARGET[size]


@pytest.mark.parametrize("size", SQUARE)
def test_square_pad_sizes(size):
    left, top = Preprocess(224, "square").padding(*size)
    assert (size[0] + 2 * left, size[1] + 2 * top) == SQUARE[size]


def picture(size):
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def test_every_source_gives_the_same(tmp_path):
    image = picture((30, 20))
    image.save(tmp_path / "a.png")
    preprocess = Preprocess(16)
    content = (tmp_path / "a.png").read_bytes()
    for source in (str(tmp_path / "a.png"), tmp_path / "a.png", content):
        np.testing.assert_array_equal(preprocess(source), preprocess(image))


def test_broken_files(tmp_path):
    preprocess = Preprocess(16)
    with pytest.raises(UserError, match=r"no.png does not exist; run `cir-jax doctor`"):
        preprocess(str(tmp_path / "no.png"))
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty.jpg is empty \(0 bytes\)"):
        preprocess(tmp_path / "empty.jpg")
    file = io.BytesIO()
    picture((64, 64)).save(file, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[:700])
    with pytest.raises(UserError, match=r"cut.jpg cannot be decoded"):
        preprocess(tmp_path / "cut.jpg")
    with pytest.raises(UserError, match=r"7 bytes cannot be decoded"):
        preprocess(b"nothing")


def test_bad_options():
    with pytest.raises(UserError, match=r"data.pad='targetpad' is unknown.*Did you mean 'target'"):
        Preprocess(16, "targetpad")
    with pytest.raises(UserError, match=r"data.target_ratio=0.5 is below 1"):
        Preprocess(16, "target", 0.5)
    assert Preprocess(16).fingerprint() != Preprocess(16, "none").fingerprint()
