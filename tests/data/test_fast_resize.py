# SPDX-License-Identifier: Apache-2.0
"""`data.resize=fast` gives Pillow's values within one level, and names itself."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cir_jax.data import fast_resize
from cir_jax.data.kept_pixels import KeptPixels
from cir_jax.data.pixels import NATURAL, Preprocess
from cir_jax.errors import UserError


def picture(width, height, mode="RGB", smooth=False):
    """Noise, which shows the largest differences, or coarse shapes."""
    rng = np.random.default_rng(width * height)
    side = (9, 7) if smooth else (width, height)
    noise = Image.fromarray(rng.integers(0, 256, (side[1], side[0], 3), np.uint8))
    return noise.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def difference(image, size=48, **options):
    """(largest, share of values that differ) between the two."""
    one = Preprocess(size, **options)(image).astype(int)
    other = Preprocess(size, resize="fast", **options)(image).astype(int)
    return np.abs(one - other).max(), (one != other).mean()


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("pad", ["target", "square", "none"])
def test_values_are_those_of_pillow_within_a_level(pad, mode, smooth):
    sizes = [(500, 400), (400, 500), (64, 64), (49, 53), (300, 90), (90, 300), (121, 100), (60, 48)]
    found = [difference(picture(*size, mode, smooth), pad=pad) for size in sizes]
    assert max(most for most, _ in found) == 1
    assert np.mean([share for _, share in found]) < 0.01


@pytest.mark.parametrize("size", [(40, 40), (30, 47), (48, 48), (20, 9)])
def test_what_grows_is_left_to_pillow(size):
    assert difference(picture(*size)) == (0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16", "1"])
def test_other_modes_are_left_to_pillow(mode):
    image = picture(90, 80, "L" if mode == "I;16" else "RGB").convert(mode)
    assert difference(image) == (0, 0)


def test_long_pictures_without_padding_are_left_to_pillow():
    assert difference(picture(100, 400), pad="none") == (0, 0)
    assert difference(picture(400, 100), pad="none") == (0, 0)


def test_threads_have_one_each():
    images = [picture(200 + n, 190) for n in range(12)]
    alone = [Preprocess(48, resize="fast")(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(Preprocess(48, resize="fast"), images * 4))
    for one, other in zip(alone * 4, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_names_itself_and_has_rows_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path))
    pillow, fast = Preprocess(48), Preprocess(48, resize="fast")
    assert pillow.fingerprint() == "pad=target 1.25 size=48 bicubic centre rgb-last"
    assert "bicubic by cykooz-resizer centre" in fast.fingerprint()
    assert fast.loaded(NATURAL).resize == "fast"
    folders = [KeptPixels("disk", p).folder for p in (pillow, fast)]
    monkeypatch.setattr(fast_resize.metadata, "version", lambda package: "99")
    folders.append(KeptPixels("disk", fast).folder)
    assert len(set(folders)) == 3


def test_the_way_of_a_file_is_that_of_its_image():
    content = io.BytesIO()
    picture(200, 170, smooth=True).save(content, "JPEG")
    preprocess = Preprocess(48, resize="fast")
    image = Image.open(io.BytesIO(content.getvalue()))
    np.testing.assert_array_equal(preprocess(content.getvalue()), preprocess(image))


def test_without_the_package_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    with pytest.raises(
        UserError, match=r"fast needs cykooz-resizer.*pip install 'cir_jax\[fast\]'"
    ):
        Preprocess(48, resize="fast")
    with pytest.raises(UserError, match=r"data.resize='quick' is unknown; there are: pillow, fast"):
        Preprocess(48, resize="quick")
