# SPDX-License-Identifier: Apache-2.0
"""Text files of people: UTF-8 with or without a byte order mark, or UTF-16 with one.

Everything that reads such a file reads it here (`streams`, for files larger than memory, takes the
encoding from here). A file in another encoding is refused with the line: a text that was guessed
wrongly would train on other letters than were written. Lines end with LF, CR LF or CR.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from cir_jax.errors import UserError

LONGEST = 16 << 20  # characters of a line; in a longer one, its end was not found
LARGEST = 1 << 30  # bytes of a file that is read whole

_UTF_8, _UTF_16 = "utf-8-sig", "utf-16"
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 16
# Tab and line ends are spaces between words. The letters of Windows that were taken for Latin-1
# (U+0080 to U+009F) do occur in published captions.
_WRONG = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def encoding(head: bytes, path: str | Path) -> str:
    """The codec of a text file.

    Args:
      head: its first bytes, 4 or more if it has them.
      path: the file, for the message.

    Raises:
      UserError: it begins like a file of another kind or encoding.
    """
    if head.startswith(_UTF_32):
        raise UserError(f"{path} is UTF-32 text; save it as UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _UTF_16
    if head.startswith(_GZIP):
        raise UserError(f"{path} is compressed by gzip, and is read as it is; unpack it (gunzip)")
    if b"\0" in head[:2]:
        raise UserError(
            f"{path} is not UTF-8 text; it begins with {head[:4]!r}, like UTF-16 "
            "without a byte order mark: save it as UTF-8"
        )
    return _UTF_8


def read(path: str | Path, packed: bool = False) -> str:
    """All of a text file, its lines ended by LF.

    Args:
      path: the file.
      packed: it may be compressed by gzip.

    Raises:
      UserError: it cannot be read, is larger than `LARGEST`, or is no text in such an encoding.
    """
    path = Path(path)
    content = _head(path, LARGEST + 1, packed)
    if len(content) > LARGEST:
        raise UserError(
            f"{path} has over {LARGEST >> 30} GiB, and is read whole; write one record per line "
            "(.jsonl), or split it"
        )
    codec = encoding(content[:4], path)
    try:
        text = content.decode(codec)
    except UnicodeDecodeError:
        raise not_text(path, codec, lambda: io.BytesIO(content)) from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def start(path: str | Path, packed: bool = False) -> str:
    """The first letters of a text file behind spaces, to see what it holds; not checked further.

    Args:
      path, packed: as for `read`.

    Raises:
      UserError: it cannot be read, or begins like a file of another kind or encoding.
    """
    head = _head(Path(path), _CHUNK, packed)
    return head.decode(encoding(head, path), "ignore").lstrip()


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of every line; one is in memory at a time.

    Raises:
      UserError: as `read` does, and a line is longer than `LONGEST`.
    """
    path = Path(path)
    try:
        with path.open("rb") as binary:
            codec = encoding(binary.read(4), path)
            binary.seek(0)
            with io.TextIOWrapper(binary, codec) as stream:
                for number, line in numbered(stream, path):
                    yield number, line.removesuffix("\n")
    except UnicodeDecodeError:
        raise not_text(path, codec, lambda: path.open("rb")) from None
    except OSError as error:
        raise _unreadable(path, error) from None


def numbered(stream: io.TextIOBase, path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of every line of a stream.

    Raises:
      UserError: a line is longer than `LONGEST`.
    """
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise UserError(
                f"{path}:{number} has no end within {LONGEST} characters; end each record with a "
                "line end"
            )
        yield number, line


def not_text(path: str | Path, codec: str, reopen: Callable[[], IO[bytes]]) -> UserError:
    """What to say of a file that its codec cannot decode; names the last line that it can.

    Args:
      path: the file.
      codec: see `encoding`.
      reopen: opens its bytes from the start.
    """
    name = "UTF-16" if codec == _UTF_16 else "UTF-8"
    decoder = codecs.getincrementaldecoder(codec)()
    count, last = 0, ""
    with reopen() as stream:
        while True:
            chunk = stream.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                good = error.object[: error.start]
                text = good.decode(error.encoding, "ignore")
                count += _ends(last + text) - _ends(last)
                bad = error.object[error.start : error.start + 1].hex()
                return UserError(
                    f"{path} is not {name} text after line {count}; save it as UTF-8 (byte 0x{bad}"
                    f" of line {count + 1}: {error.reason})"
                )
            if not chunk:
                return UserError(f"{path} is not {name} text; save it as UTF-8")
            count += _ends(last + text) - _ends(last)
            last = text[-1:] if text.endswith("\r") else ""


def fault(text: str) -> str:
    """What is wrong with the characters of a text or a name; "" if nothing is.

    Control characters (but tab and line ends) and halves of surrogate pairs: no font shows them,
    no file in UTF-8 holds the second, and a terminal obeys the first.
    """
    if text.isprintable():
        return ""
    found = _WRONG.search(text)
    if found is None:
        return ""
    letter = found[0]
    if "\udc80" <= letter <= "\udcff":
        byte = f"byte 0x{ord(letter) - 0xDC00:x}"
        return f"{letter!r} is no character: {byte} is not UTF-8; save the file as UTF-8"
    if letter >= "\ud800":
        return f"{letter!r} is no character: half of a surrogate pair"
    return f"{letter!r} is a control character"


def _head(path: Path, most: int, packed: bool) -> bytes:
    """The first bytes of a file, unpacked if it is and may be compressed by gzip."""
    try:
        with path.open("rb") as file:
            if packed and file.read(2) == _GZIP:
                file.seek(0)
                with gzip.open(file) as unpacked:
                    return unpacked.read(most)
            file.seek(0)
            return file.read(most)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is cut or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _ends(text: str) -> int:
    """How many lines end in a text."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror or error}); correct that")
