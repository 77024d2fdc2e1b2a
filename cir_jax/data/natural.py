# SPDX-License-Identifier: Apache-2.0
"""A decoded image as a person sees it: upright, on a background, in 8-bit RGB.

    orientation    the EXIF tag is applied, all eight values
    16 bits        the full range: 0 is black, 65,535 white; rounded to the nearest
    32-bit whole   0 to 255 as they are; else, up to 65,535, as 16 bits; else the least value is
                   black and the greatest white
    float          0 to 1; else the least finite value is black and the greatest white. NaN is
                   black, an infinity black or white
    transparency   laid on the background: of palettes, of one colour and of premultiplied alpha too
    CMYK           by its embedded profile to sRGB, or without one by the plain formula
    LAB, 1 bit...  as Pillow converts them

Profiles of RGB and grey images are not applied: what the encoders learned from had them ignored.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageCms

from cir_jax.data import pillow_warnings

_STRIP = 1 << 22  # pixels that are converted at a time, where the conversion needs room
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def seen(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in RGB, upright.

    Args:
      image: decoded, in any mode of Pillow.
      background: red, green and blue behind what is transparent.

    Raises:
      ValueError: a float image without one finite value, colours by numbers without their table,
        or a mode without a way to RGB.
    """
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("its palette is missing")
    turn = _TURNS.get(orientation(image))
    found = _rgb(image, background)
    return found if turn is None else found.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # damaged EXIF raises whatever its parser meets
        pillow_warnings.note(f"its EXIF data are damaged ({type(error).__name__}) and ignored")
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def is_plain(image: Image.Image) -> bool:
    """Whether everybody sees the same in the file, because nothing has to be converted."""
    return (
        image.mode in ("RGB", "L")
        and not image.has_transparency_data
        and orientation(image) == 1
        and getattr(image, "n_frames", 1) == 1
    )


def _rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if (
        image.mode == "L" and _tag(image, 339) == 2
    ):  # SampleFormat: signed, which Pillow passes over
        return image.point([value ^ 128 for value in range(256)]).convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return _wide(image, background)
    if image.has_transparency_data:
        return _on(image, background)
    if image.mode == "CMYK" and (profile := image.info.get("icc_profile")):
        try:
            return _by_profile(image, profile)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pillow_warnings.note("its CMYK profile cannot be used; converted without one")
    return image.convert("RGB")


def _on(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """An image with any kind of transparency, on the background."""
    clear = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        # One colour of 16 bits, of which the pixels were left the upper byte.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    result = Image.new("RGB", image.size, background)
    for top, strip in _strips(image):
        if strip.mode in ("La", "RGBa"):
            strip = strip.convert({"La": "LA", "RGBa": "RGBA"}[strip.mode])
        strip = strip.convert("RGBA")
        result.paste(strip.convert("RGB"), (0, top), strip.getchannel("A"))
    return result


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
    )
    found = ImageCms.applyTransform(image, transform)
    assert found is not None  # it is None where the image itself is changed
    return found


def _wide(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Of values of more than 8 bits."""
    low, high = _range(image)
    inverted = _tag(image, 262) == 0  # PhotometricInterpretation, which Pillow follows for 8 bits
    clear = image.info.get("transparency")
    result = Image.new("RGB", image.size, background)
    for top, strip in _strips(image):
        values = _values(strip)
        share = np.clip((values - low) / (high - low), 0, 1)
        share[np.isnan(share)] = 0
        grey = np.floor((1 - share if inverted else share) * 255 + 0.5).astype(np.uint8)
        shown = None
        if isinstance(clear, int):
            shown = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        result.paste(Image.fromarray(grey).convert("RGB"), (0, top), shown)
    return result


def _range(image: Image.Image) -> tuple[float, float]:
    """The values that are black and white."""
    if image.mode.startswith("I;16"):
        return 0, 65535
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = _values(strip)
        values = values[np.isfinite(values)]
        if len(values):
            low, high = min(low, values.min()), max(high, values.max())
    if low > high:
        raise ValueError("none of its values is a finite number")
    for most in (1,) if image.mode == "F" else (255, 65535):
        if low >= 0 and high <= most:
            return 0, most
    # Of one value alone there is no range: what 8 bits hold stays as it is, the rest is cut.
    return (low, high) if low < high else (0, 255)


def _tag(image: Image.Image, number: int) -> int | None:
    """A number that a TIFF says of its pixels."""
    value = (getattr(image, "tag_v2", None) or {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def _values(strip: Image.Image) -> np.ndarray:
    """[H, W] float64: whole numbers of 32 bits are exact in it."""
    return np.asarray(strip).astype(np.float64)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, these rows) of the whole image, from the top."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
