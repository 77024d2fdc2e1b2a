# SPDX-License-Identifier: Apache-2.0
"""Squares that tell their number. As a program it writes many of them until it is killed.

python -m tests.data.numbered_squares FOLDER COUNT
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cir_jax.data.pixel_files import Identity, PixelFiles

SIDE = 16


def place(number):
    return number.to_bytes(16, "little")


def identity(number, time=7):
    return Identity(number, time, place(number), place(number))


def square(number):
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def opened(folder, **options):
    return PixelFiles("test", SIDE, Path(folder), **options)


def fill(folder, numbers, threads=1):
    """A store with these squares; by one thread they are in their order."""
    store = opened(folder)
    with ThreadPoolExecutor(threads) as pool:
        write = lambda n: store.write(place(n), identity(n), square(n))
        assert all(pool.map(write, numbers))
    return store


if __name__ == "__main__":
    fill(sys.argv[1], range(int(sys.argv[2])), threads=4)
