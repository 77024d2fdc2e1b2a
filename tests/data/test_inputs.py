# SPDX-License-Identifier: Apache-2.0
"""Squares and normalisation of towers other than CLIP's, and what names them."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cir_jax import contract
from cir_jax.data.pixels import CLIP, Normalisation, Preprocess
from cir_jax.errors import UserError

HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def picture(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("interpolation, resample", [("bilinear", 2), ("bicubic", 3)])
def test_squashed_pixels_are_those_of_transformers(interpolation, resample):
    theirs = SiglipImageProcessorPil(
        size={"height": 32, "width": 32}, resample=resample, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    for size in ((70, 45), (20, 90), (32, 32)):
        image = picture(*size)
        want = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        square = Preprocess(32, "squash", interpolation=interpolation)(image)
        np.testing.assert_allclose(contract.normalize(jnp.asarray(square), HALF), want, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_fast_pixels_are_within_a_level(interpolation):
    image = picture(80, 70)
    one, other = (
        Preprocess(32, "squash", resize=how, interpolation=interpolation)(image).astype(int)
        for how in ("pillow", "fast")
    )
    assert np.abs(one - other).max() <= 1


def test_a_large_canvas_is_resized_by_the_same_filter(monkeypatch):
    from cir_jax.data import squares

    make = lambda: Preprocess(16, "target", interpolation="bilinear")(picture(90, 40))
    whole = make()
    monkeypatch.setattr(squares, "WHOLE", 100)
    monkeypatch.setattr(squares, "STRIP", 500)
    np.testing.assert_array_equal(make(), whole)
    assert (Preprocess(16, "target")(picture(90, 40)) != whole).any()


def test_fingerprints_name_what_is_not_clips():
    plain = "pad=none size=16 bicubic centre rgb-last"
    assert Preprocess(16, "none").fingerprint() == plain
    assert Preprocess(16, "none", normalisation=CLIP).fingerprint() == plain
    other = Preprocess(16, "squash", interpolation="bilinear", normalisation=HALF)
    assert other.fingerprint() == (
        "pad=squash size=16 bilinear centre rgb-last mean=0.5,0.5,0.5 deviation=0.5,0.5,0.5"
    )
    assert other.loaded(other.loading).fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda: Normalisation((0.5, 0.5)), "pixel mean .* three numbers"),
        (lambda: Normalisation((0.5, 0.5, 128)), "pixel mean .* none of an image"),
        (lambda: Normalisation(deviation=(0.5, 0, 0.5)), "pixel deviation"),
        (lambda: Preprocess(16, interpolation="cubic"), "interpolation='cubic'.*bicubic"),
    ],
)
def test_what_no_image_has(make, why):
    with pytest.raises(UserError, match=why):
        make()
