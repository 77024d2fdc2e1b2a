# SPDX-License-Identifier: Apache-2.0
"""What JSON is read: every reader of a file that people or other projects wrote parses with this.

Python's parser is laxer than JSON and does not say what it changed: of two equal keys it keeps the
last, it reads NaN, makes an infinity of 1e999, and returns half of a surrogate pair as if it were a
character. Each of these is refused here. Numbers stay numbers: an integer is an `int` of any size
(up to Python's 4,300 digits), any other number a `float`. Control characters are refused where the
strings are texts and names of images (`printable`); names of tensors and tokens may have any.
"""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from cir_jax.data import text_files

_SPACE = re.compile(r"[ \t\n\r]*")
# A lone surrogate comes from an escape, or stands for a byte that is not UTF-8 where the file is
# read with errors="surrogateescape". Few texts have either, so few are looked at closely.
_ESCAPED, _RAW = re.compile(r"\\u[dD][89a-fA-F]"), re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"\\u00(?:[01]|7[fF])|\\[bf]|\x7f")  # JSON has others as escapes only


def loads(text: str, lone_surrogates: bool = False, printable: bool = False) -> Any:
    """The value of a JSON text.

    Args:
      text: all of it.
      lone_surrogates: read them, as files that this program wrote may hold them.
      printable: refuse control characters in strings, see `text_files.fault`.

    Raises:
      json.JSONDecodeError: it is malformed; the error knows the position.
      ValueError: it is one of the things that are refused; the message says which.
    """
    value, end = decode(text, _past_space(text, 0), lone_surrogates, printable)
    end = _past_space(text, end)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _past_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start


def decode(
    text: str, start: int = 0, lone_surrogates: bool = False, printable: bool = False
) -> tuple[Any, int]:
    """The JSON value that begins at `start` of a longer text, and where it ends.

    Raises:
      json.JSONDecodeError, ValueError: as `loads` does.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
        if not lone_surrogates and (
            _ESCAPED.search(text, start, end)
            or (not text.isascii() and _RAW.search(text, start, end))
        ):
            json.dumps(value, ensure_ascii=False).encode()
        if printable and _CONTROL.search(text, start, end):
            _check_printable(value)
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply to be read") from None
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{error.object[error.start]!r} is no character: half of a surrogate pair, or a byte "
            "that is not UTF-8"
        ) from None
    return value, end


def _check_printable(value: Any) -> None:
    """Raises ValueError for a string in `value` that has a control character."""
    found = [value]
    while found:
        one = found.pop()
        if isinstance(one, dict):
            found += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            found += one
        elif isinstance(one, str) and (wrong := text_files.fault(one)):
            raise ValueError(wrong)


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is beyond the largest number, 1.8e308")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_distinct_keys, parse_float=_finite, parse_constant=_no_number
)
