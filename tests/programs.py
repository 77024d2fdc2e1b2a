# SPDX-License-Identifier: Apache-2.0
"""The folder in which jax keeps the compiled programs of the tests, for later runs."""

LIMIT = 2**30  # bytes; a run of all tests writes a fifth of that


def drop_oldest(folder, limit):
    """Removes the files that were written first, until `limit` bytes are left.

    jax can bound the folder itself, but then reads all of it whenever it writes a program.
    """
    files = [(file.stat(), file) for file in folder.glob("*-cache")]
    total = 0
    for status, file in sorted(files, key=lambda f: -f[0].st_mtime):
        total += status.st_size
        if total > limit:
            file.unlink(missing_ok=True)  # another run may be at it
