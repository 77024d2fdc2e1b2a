# SPDX-License-Identifier: Apache-2.0
"""Spoils a file: its bytes, its numbers, or what it holds by its format."""

import copy
import gzip
import io
import json
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cir_jax.runtime import checksums

RAW = "@raw@"  # begins a string that stands for JSON text that `json.dumps` would not write
# Values that people and programs do write where others were expected.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 0.5, -0.0, 1e308, "", " ", "\0",
    "\x1b[31m",
    "\ud83d", "a\nb", "\u202eabc", "..", "../../etc/passwd", "/", "a" * 5000, "é", "e\u0301", "1",
    [], {}, [[]], [None], {"": None}, ["x"] * 50, [1, "a", None],
    f"{RAW}NaN", f"{RAW}-Infinity", f"{RAW}1e999", f"{RAW}{'9' * 5000}",
    f"{RAW}{'[' * 10_000}{']' * 10_000}", f'{RAW}{{"a": 1, "a": 2}}', f'{RAW}"\\ud800"',
)  # fmt: skip
PIECES = (
    b"\0", b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b'"',
    b"'",
    b"{", b"}", b"[", b"]", b",", b":", b";", b"\t", b"\\", b"\\u0000", b"\\ud800", b"NaN", b"null",
    b"-1", b"1e999", b"9" * 5000, b"\x1b[2J", b"\x80\x02", b"PK\x03\x04", b"\x1f\x8b\x08",
    b"<html>",
    b"[" * 10_000, b"\xe2\x80\xa8", b"\x00\x00\x00\x00\x00\x00\x00\x80", b"\xff" * 8, b"../",
)  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNKS = (
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs",
    b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"aaAa",
)  # fmt: skip
_NUMBERS = (0, 1, -1, 127, 255, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**40)


def mutated(content: bytes, name: str, rng: random.Random) -> bytes:
    """Other bytes for a file of this name."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        ways = [_bytes, _bytes, _numbers, _whole]
        ways += next((extra for end, extra in _BY_NAME if name.endswith(end)), [])
        content = rng.choice(ways)(content, rng)
    return content


def _bytes(content: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(content))
    to = min(len(content), at + rng.choice((1, 1, 2, 4, 16, 200)))
    kind = rng.randrange(6)
    if kind == 0:
        return content[:at] + content[to:]
    if kind == 1:
        return content[:at] + rng.choice(PIECES) + content[at:]
    if kind == 2:
        return content[:at] + rng.choice(PIECES) + content[to:]
    if kind == 3:
        return content[:to] + content[at:to] * rng.choice((1, 2, 9)) + content[to:]
    if kind == 4:
        return content[:at] + rng.randbytes(to - at) + content[to:]
    return content[:at]


def _numbers(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        places = [m.span() for m in re.finditer(rb"\d+", content[: 1 << 16])]
        if places:
            start, end = rng.choice(places)
            odd = rng.choice((*map(str, _NUMBERS), "1e5", "00", "", "9" * 5000)).encode()
            return content[:start] + odd + content[end:]
    form = rng.choice("bBhHiIqQ")
    size = struct.calcsize(form)
    if len(content) < size:
        return content
    at = rng.randint(0, len(content) - size)
    value = rng.choice(_NUMBERS) & (2 ** (8 * size) - 1)
    return content[:at] + value.to_bytes(size, "little") + content[at + size :]


def _whole(content: bytes, rng: random.Random) -> bytes:
    ways: tuple[Callable[[bytes], bytes], ...] = (
        lambda c: b"",
        lambda c: b"<!doctype html><html><body>404 Not Found</body></html>",
        lambda c: b"\xef\xbb\xbf" + c,
        lambda c: c.decode("utf-8", "replace").encode("utf-16"),
        lambda c: c.decode("utf-8", "replace").encode("utf-16-le"),
        lambda c: c.decode("utf-8", "replace").encode("utf-32"),
        lambda c: c.replace(b"\n", b"\r"),
        lambda c: c.replace(b"\n", b""),
        lambda c: c + c,
        lambda c: b"[" + c + b"]",
        lambda c: c[::-1],
        lambda c: gzip.compress(c, 1),
        lambda c: gzip.compress(c, 1)[:-7],
        lambda c: b"\xe9".join(c.split(b"a", 2)),
    )
    return rng.choice(ways)(content)


def _json(content: bytes, rng: random.Random) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return _lines(content, rng) if b"\n" in content.strip() else content
    return _dumped(_changed(tree, rng), rng)


def _lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        cells = re.split(rb"([,\t;])", lines[at])
        cells[rng.randrange(len(cells))] = rng.choice(PIECES)
        lines[at] = b"".join(cells)
    else:
        try:
            lines[at] = _dumped(_changed(json.loads(lines[at]), rng), rng)
        except (ValueError, RecursionError):
            lines[at] = rng.choice(PIECES)
    return b"\n".join(lines)


def _dumped(tree: Any, rng: random.Random) -> bytes:
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.7)
    text = re.sub(f'"{RAW}((?:[^"\\\\]|\\\\.)*)"', lambda m: json.loads(f'"{m[1]}"'), text)
    return text.encode("utf-8", "surrogatepass")


def _changed(tree: Any, rng: random.Random) -> Any:
    """The tree with one node changed."""
    tree = copy.deepcopy(tree)
    nodes: list[tuple[Any, Any]] = []
    todo = [tree]
    while todo:
        one = todo.pop()
        keys: Any = one if isinstance(one, dict) else ()
        for key in range(len(one)) if isinstance(one, list) else list(keys):
            nodes.append((one, key))
            todo.append(one[key])
    if not nodes or rng.random() < 0.03:
        return rng.choice(VALUES)
    parent, key = rng.choice(nodes)
    kind = rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(rng.choice(VALUES))[:300]] = parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        parent += [parent[key]] * rng.choice((1, 3))
    elif kind == 3:
        parent[key] = [parent[key]]
    else:
        parent[key] = rng.choice(VALUES)
    return tree


def _sealed(content: bytes, rng: random.Random) -> bytes:
    """A record with its own checksum, which is made anew: what only a later check can find."""
    try:
        tree = json.loads(content)
        del tree[checksums.OWN]
        return checksums.sealed(_changed(tree, rng))
    except (ValueError, KeyError, TypeError, RecursionError):
        return content


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    if not 0 < size <= len(content) - 8:
        return content
    header = _json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _zip(content: bytes, rng: random.Random) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # it was spoiled before
        return content
    at = rng.randrange(len(members))
    name, inside = members[at]
    members[at] = (name, rng.choice((_bytes, _numbers, _whole))(inside, rng))
    if rng.random() < 0.1:
        members.append(members[rng.randrange(len(members))])
    made = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, inside in members:
            archive.writestr(zipfile.ZipInfo(name), inside)
    return made.getvalue()


def _tar(content: bytes, rng: random.Random) -> bytes:
    made = io.BytesIO()
    try:
        with (
            tarfile.open(fileobj=io.BytesIO(content)) as archive,
            tarfile.open(fileobj=made, mode="w") as written,
        ):
            infos = archive.getmembers()
            chosen = rng.choice(infos)
            for info in infos:
                file = archive.extractfile(info)
                inside = file.read() if file else b""
                if info is chosen:
                    inside = rng.choice((_bytes, _json, _whole))(inside, rng)
                    info.name = rng.choice((info.name, "../" + info.name, "a", "", "\x1b.txt"))
                    info.type = rng.choice((info.type,) * 6 + (tarfile.SYMTYPE, tarfile.DIRTYPE))
                info.size = len(inside)
                written.addfile(info, io.BytesIO(inside))
    except Exception:  # it was spoiled before
        return content
    return made.getvalue()


def _png(content: bytes, rng: random.Random) -> bytes:
    """A PNG with one chunk changed, added or moved, whose checksums are right all the same."""
    if content[:8] != _PNG:
        return content
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return content
    place = rng.randrange(len(chunks))
    kind, inside = chunks[place]
    way = rng.randrange(5)
    if way == 0:
        chunks.insert(place, (rng.choice(_CHUNKS), rng.choice((inside, rng.choice(PIECES)))))
    elif way == 1:
        chunks[place] = (rng.choice(_CHUNKS), inside)
    elif way == 2:
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(place))
    else:
        with suppress(zlib.error):
            if kind == b"IDAT" and rng.random() < 0.5:
                inside = zlib.compress(rng.choice((_bytes, _numbers))(zlib.decompress(inside), rng))
        chunks[place] = (kind, rng.choice((_bytes, _numbers, _big_numbers))(inside, rng))
    made = [_PNG]
    for kind, inside in chunks:
        checksum = zlib.crc32(kind + inside).to_bytes(4, "big")
        made += [len(inside).to_bytes(4, "big"), kind, inside, checksum]
    return b"".join(made)


def _big_numbers(content: bytes, rng: random.Random) -> bytes:
    """As `_numbers`, with the first byte the largest, as PNG has them."""
    size = rng.choice((1, 2, 4))
    if len(content) < size:
        return content
    at = rng.randint(0, len(content) - size)
    value = rng.choice(_NUMBERS) & (2 ** (8 * size) - 1)
    return content[:at] + value.to_bytes(size, "big") + content[at + size :]


Way = Callable[[bytes, random.Random], bytes]
_BY_NAME: tuple[tuple[str, list[Way]], ...] = (
    ("bank.json", [_json, _sealed, _sealed]),
    ("part.json", [_json, _sealed, _sealed]),
    ("checksums.json", [_json, _sealed, _sealed]),
    (".json", [_json] * 6),
    (".jsonl", [_lines] * 6),
    (".txt", [_lines] * 3),
    (".csv", [_lines] * 5),
    (".tsv", [_lines] * 5),
    (".safetensors", [_safetensors] * 4),
    (".pt", [_zip] * 4),
    (".tar", [_tar] * 4),
    (".PNG", [_png] * 6),
)
