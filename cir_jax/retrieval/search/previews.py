# SPDX-License-Identifier: Apache-2.0
"""Pictures on a terminal: by its graphics protocol where it has one, else by coloured half blocks.

kitty    https://sw.kovidgoyal.net/kitty/graphics-protocol/ (kitty, Ghostty)
iterm    https://iterm2.com/documentation-images.html (iTerm2, WezTerm, mintty)
blocks   the upper half block, whose two colours are two pixels; 24-bit colours, or 256
"""

import base64
import io
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from cir_jax.data import small_pictures
from cir_jax.data.pixels import NATURAL
from cir_jax.errors import UserError
from cir_jax.retrieval.search import printing
from cir_jax.retrieval.search.checking import Searched
from cir_jax.retrieval.search.results import Hit

COLUMNS, LINES = 16, 8  # of a picture; a cell of a terminal is twice as high as wide
KINDS = ("auto", "none", "blocks", "kitty", "iterm")
_SIDE = 256  # pixels of a picture that a protocol sends
_CHUNK = 4096  # bytes of base64 that one command of kitty's may have
_STEPS = (0, 95, 135, 175, 215, 255)  # of the 6 x 6 x 6 colours of a terminal of 256
_ESC, _END = "\x1b", "\x1b\\"
_SAVE, _RESTORE, _RESET = "\x1b7", "\x1b8", "\x1b[0m"


def show(index: Searched, hit: Hit, kind: str, environment: Mapping[str, str], width: int) -> None:
    """Prints an image with its picture.

    Args:
      index: that has it.
      hit: see `Answer`.
      kind: one of `KINDS` but "auto" and "none".
      environment: of the process.
      width: columns of the terminal; 0 cuts nothing.
    """
    try:
        image = small_pictures.small(index.path_of(hit.id), NATURAL, _SIDE)
    except UserError:  # it has gone since it was indexed
        image = None
    room = max(width - COLUMNS - 2, 8) if width else 0
    beside = printing.details(hit, room, LINES)
    sys.stdout.write(drawn(image, beside, kind, environment) + "\n\n")


def supported(environment: Mapping[str, str], encoding: str | None) -> str:
    """The best kind of a terminal, by what it says of itself: one of `KINDS` but "auto".

    Args:
      environment: of the process, `os.environ`.
      encoding: of standard output.
    """
    term = environment.get("TERM", "")
    program = environment.get("TERM_PROGRAM", "")
    # tmux and screen pass no pictures on, whatever terminal they run in.
    inside = "TMUX" in environment or term.startswith(("screen", "tmux"))
    if not inside:
        if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
            return "kitty"
        if program == "ghostty":
            return "kitty"
        iterm = environment.get("LC_TERMINAL") == "iTerm2"  # which ssh passes on
        if iterm or program in ("iTerm.app", "WezTerm", "mintty"):
            return "iterm"
    # Half blocks are no letters of ASCII.
    letters = (encoding or "").lower().replace("-", "") == "utf8"
    if environment.get("NO_COLOR") or term in ("", "dumb") or not letters:
        return "none"
    return "blocks" if _true_colour(environment) or "256color" in term else "none"


def drawn(
    image: Image.Image | None, beside: Sequence[str], kind: str, environment: Mapping[str, str]
) -> str:
    """A picture, and lines of text at its right.

    Args:
      image: None leaves its place empty.
      beside: lines that are safe to print.
      kind: one of `KINDS` but "auto" and "none".
      environment: of the process; says whether blocks have 24-bit colours.
    """
    lines = 0 if image is None else _cells(image)[1]
    height = max(lines, len(beside), 2)
    texts = [*beside, *[""] * (height - len(beside))]
    if kind == "blocks" or image is None:
        picture = _blocks(image, _true_colour(environment)) if image is not None else []
        picture += [" " * COLUMNS] * (height - len(picture))
        both = zip(picture, texts, strict=True)
        return "\n".join(f"{left}  {text}".rstrip() for left, text in both)
    # Room first: a picture at the foot of the window would scroll under the text beside it.
    room = "\n" * (height - 1) + f"{_ESC}[{height - 1}A\r"
    sent = (_kitty if kind == "kitty" else _iterm)(_fit(image, _SIDE, _SIDE))
    right = "\n".join(f"{_ESC}[{COLUMNS + 2}C{text}" if text else "" for text in texts)
    return f"{room}{_SAVE}{sent}{_RESTORE}{right}"


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """A copy no larger than this."""
    small = image.convert("RGB")
    small.thumbnail((width, height), Image.Resampling.BICUBIC)
    return small


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue())


def _cells(image: Image.Image) -> tuple[int, int]:
    """(columns, lines) of a picture in its shape, in the room that there is."""
    scale = min(COLUMNS / image.width, 2 * LINES / image.height)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale / 2))


def _kitty(image: Image.Image) -> str:
    """Transmit and show (a=T) a PNG (f=100) without moving the cursor (C=1) or an answer (q=2)."""
    content = _png(image).decode()
    columns, lines = _cells(image)
    pieces = [content[i : i + _CHUNK] for i in range(0, len(content), _CHUNK)]
    keys = f"a=T,f=100,C=1,q=2,c={columns},r={lines},"
    commands = []
    for number, piece in enumerate(pieces):
        more = int(number < len(pieces) - 1)
        commands.append(f"{_ESC}_G{keys if number == 0 else ''}m={more};{piece}{_END}")
    return "".join(commands)


def _iterm(image: Image.Image) -> str:
    content = _png(image).decode()
    columns, lines = _cells(image)
    keys = f"inline=1;width={columns};height={lines};preserveAspectRatio=1"
    return f"{_ESC}]1337;File={keys}:{content}\a"


def _blocks(image: Image.Image, true_colour: bool) -> list[str]:
    """Lines of `COLUMNS` cells: the colour of a letter is a pixel, its background the one below."""
    columns, lines = _cells(image)
    small = image.convert("RGB").resize((columns, 2 * lines), Image.Resampling.BICUBIC)
    pixels = np.asarray(small).reshape(lines, 2, columns, 3).tolist()
    colour = _true if true_colour else _indexed
    found = []
    for upper, lower in pixels:
        cells = [
            f"{_ESC}[38;{colour(above)};48;{colour(below)}m\u2580"
            for above, below in zip(upper, lower, strict=True)
        ]
        found.append("".join(cells) + _RESET + " " * (COLUMNS - columns))
    return found


def _true_colour(environment: Mapping[str, str]) -> bool:
    return environment.get("COLORTERM", "") in ("truecolor", "24bit")


def _true(pixel: Sequence[int]) -> str:
    return "2;{};{};{}".format(*pixel)


def _indexed(pixel: Sequence[int]) -> str:
    """The nearest of the 216 colours that a terminal of 256 has from number 16 on."""
    red, green, blue = (
        min(range(6), key=lambda step: abs(_STEPS[step] - value)) for value in pixel
    )
    return f"5;{16 + 36 * red + 6 * green + blue}"
