# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of each entry of a torch zip archive lie.

All entries lie in one folder and are stored without compression: `data.pkl` says what was saved,
`data/0`, `data/1`, ... hold the values, `byteorder` their byte order. A TorchScript archive holds
`constants.pkl` and code besides, some of it compressed; the code is never looked at.
"""

import os
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

from cir_jax.errors import UserError

MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s22xHH")  # of a local header: magic, length of name, of extra field
_KNOWN = ("data.pkl", "constants.pkl", "byteorder")


@dataclass(frozen=True)
class Archive:
    """The entries of an archive.

    Attributes:
      path: of the file.
      size: bytes of the file.
      entries: name without the common folder -> (position of its bytes, their number).
    """

    path: str | os.PathLike
    size: int
    entries: dict[str, tuple[int, int]]

    def content(self, file: BinaryIO, name: str, most: int) -> bytes:
        """All bytes of a small entry, of the file at `path`.

        Raises:
          UserError: it has more than `most` bytes.
        """
        start, size = self.entries[name]
        if size > most:
            raise UserError(
                f"{self.path}: {name!r} has {size} bytes, above the limit of {most}; open the file "
                "with torch and save the state_dict() alone"
            )
        file.seek(start)
        return file.read(size)


def entries(path: str | os.PathLike, file: BinaryIO) -> Archive:
    """Finds the entries a reader of weights needs, and checks that they lie in the file.

    Raises:
      UserError: the archive is cut, has several folders, an entry twice, compressed values, another
        byte order than little-endian, or no data.pkl.
    """
    try:
        with zipfile.ZipFile(file) as found:
            infos = found.infolist()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
        raise UserError(
            f"{path} is cut or damaged: there is no list of entries at its end ({error}); fetch "
            "the file again"
        ) from None
    roots = sorted({info.filename.partition("/")[0] for info in infos})
    if len(roots) > 1:
        raise UserError(
            f"{path} holds {len(roots)} folders ({', '.join(map(repr, roots[:3]))}), and "
            "torch.save writes one; unpack it and give the file inside, or fetch the weights again"
        )
    archive = Archive(path, os.fstat(file.fileno()).st_size, {})
    for info in infos:
        name = info.filename.partition("/")[2]
        if name.startswith("data/") or name in _KNOWN:
            if name in archive.entries:
                raise UserError(f"{path} holds {name!r} twice; fetch the file again")
            archive.entries[name] = _place(archive, file, info, name)
    if "data.pkl" not in archive.entries:
        raise UserError(
            f"{path} is a zip archive without data.pkl, so torch.save did not write it; unpack it "
            "and give the file inside, or fetch the weights again"
        )
    # Archives without the entry are older than it, and little-endian.
    order = archive.content(file, "byteorder", 16) if "byteorder" in archive.entries else b"little"
    if order != b"little":
        raise UserError(
            f"{path} has byteorder {order!r}, and only b'little' is read; save it again on a "
            "little-endian machine (x86 or ARM)"
        )
    return archive


def _place(archive: Archive, file: BinaryIO, info: zipfile.ZipInfo, name: str) -> tuple[int, int]:
    """Position and size of the bytes of one entry."""
    if info.compress_type or info.flag_bits & 1:
        raise UserError(
            f"{archive.path}: {name!r} is compressed or encrypted, as torch.save never does; fetch "
            "the file as it was published, or unpack it and zip it without compression"
        )
    header = b""
    if 0 <= info.header_offset < archive.size:
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(MAGIC):
        raise UserError(f"{archive.path} is damaged at its entry {name!r}; fetch the file again")
    start = info.header_offset + _LOCAL.size + sum(_LOCAL.unpack(header)[1:])
    if start + info.compress_size > archive.size:
        raise UserError(
            f"{archive.path} is cut: its entry {name!r} ends at byte "
            f"{start + info.compress_size} of {archive.size}; fetch the file again"
        )
    return start, info.compress_size
