# SPDX-License-Identifier: Apache-2.0
"""Compiled programs that later commands read back rather than compile again.

jax keeps them in a folder if it is told one. Here it is, below `files.cache()`, for each kind of
processor and version of jax a folder of its own: a home is shared by machines, and a program of one
may end another with an illegal instruction. Whoever can write there can have us run code, so a
folder that others can write is not used.

jax can bound the folder itself, but then all processes wait for one lock, and a process that is
killed as it writes leaves a file at which every later write fails. So it is trimmed here, when a
command starts. Free of jax, which reads its environment when it is imported.
"""

import contextlib
import hashlib
import os
import platform
import stat
import sys
from collections.abc import MutableMapping
from importlib import metadata
from pathlib import Path

from cir_jax import files, progress

VARIABLE = "CIR_JAX_PROGRAMS"  # the folder, or "off"
LIMIT = 2 * 10**9  # bytes of all kinds of processor and versions together
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
# The smallest programs count too: a start has a dozen of them.
_OPTIONS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
_kept = False
_CPU = Path("/proc/cpuinfo")
# What tells processors apart there, on x86 and on ARM; clock rates and the like change.
_TRAITS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
)


def keep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has jax, which must not be imported yet, keep compiled programs for later commands.

    Nothing is changed where `VARIABLE` is "off", where jax's own variable names a folder, or where
    no folder can be used; the last is said. Some runs do without, see
    `cir_jax.runtime.mesh.compile_anew`.

    Args:
      environment: is read, and given the variables of jax.
    """
    global _kept
    wanted = environment.get(VARIABLE, "")
    if "jax" in sys.modules or wanted == "off" or environment.get(_FOLDER):
        return
    root = Path(wanted or files.cache() / "programs").expanduser().absolute()
    folder = root / kind()
    if reason := _unusable(folder):
        progress.say(
            f"compiled programs are not kept in {folder} ({reason}); {VARIABLE} can name another "
            "folder, or be off"
        )
        return
    trim(root, LIMIT)
    environment[_FOLDER] = str(folder)
    for name, value in _OPTIONS.items():
        environment.setdefault(name, value)
    _kept = True


def kept() -> bool:
    """Whether jax was told the folder by `keep`."""
    return _kept


def kind() -> str:
    """What programs must have been compiled with to be read here: a name for a folder."""
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib")]
    about = "\n".join([*versions, platform.system(), platform.machine(), _processor()])
    return f"jax-{metadata.version('jax')}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def trim(root: Path, limit: int) -> None:
    """Removes programs until `limit` bytes are left, those that were used least recently first.

    When one was read is what the file system notes of it, at least once a day; where it notes
    nothing, when it was written.

    Args:
      root: the folder of the folders of each kind.
      limit: in bytes.
    """
    found = []
    for file in root.glob("*/*-cache"):
        with contextlib.suppress(OSError):  # another command may trim as well
            status = file.stat()
            found.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    total = 0
    for _, size, file in sorted(found, reverse=True):
        total += size
        if total > limit:
            with contextlib.suppress(OSError):
                file.unlink()


def _unusable(folder: Path) -> str:
    """Why programs cannot be kept in a folder, which is made if need be; "" if they can.

    Who can write to a folder above it may put another in its place, which is then not ours.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return error.strerror or str(error)
    if status.st_uid != os.geteuid():
        return "it belongs to another user, whose programs are not run"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others can write there; chmod go-w makes it yours"
    return "" if os.access(folder, os.W_OK) else "it cannot be written"


def _processor() -> str:
    """Kind and features of the processor."""
    try:
        first = _CPU.read_text(errors="replace").partition("\n\n")[0]
    except OSError:  # no Linux
        return platform.processor()
    pairs = (line.partition(":") for line in first.splitlines())
    traits = {name.strip(): value.strip() for name, _, value in pairs}
    return "\n".join(f"{name}: {traits[name]}" for name in _TRAITS if name in traits)
