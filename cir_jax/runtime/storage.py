# SPDX-License-Identifier: Apache-2.0
"""What kind of storage a folder is on: a disk, or a bucket that is mounted. Free of jax."""

import os
import re
from pathlib import Path

MOUNTS = "/proc/mounts"
# File system types of mounted buckets. A rename there is a copy and a delete of every file, and an
# open file is seen by others, and survives its host, only once it is closed. "fuse" alone is what
# GKE's driver of Cloud Storage and mountpoint-s3 call themselves.
_BUCKETS = ("fuse", "fuse.gcsfuse", "fuse.s3fs", "fuse.rclone", "fuse.blobfuse2", "fuse.goofys")


def is_bucket(path: str | Path) -> bool:
    """Whether a path, which need not exist, is on a mounted bucket."""
    return kind(path) in _BUCKETS


def kind(path: str | Path) -> str:
    """The type of the file system that a path is on; "" where the system does not tell."""
    place = os.path.realpath(path)
    try:
        lines = Path(MOUNTS).read_text().splitlines()
    except OSError:
        return ""
    found = ("", "")
    for fields in (line.split(" ") for line in lines):
        if len(fields) < 3:
            continue
        folder = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
        below = place == folder or place.startswith(folder.rstrip("/") + "/")
        if below and len(folder) >= len(found[0]):
            found = (folder, fields[2])
    return found[1]
