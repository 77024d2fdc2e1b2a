# SPDX-License-Identifier: Apache-2.0
"""What all processes know of each other before any of them acts."""

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cir_jax.errors import UserError

_LONGEST = 2000  # bytes of a text that processes tell each other

T = TypeVar("T")


def tell(text: str) -> list[str]:
    """The texts of all processes, in their order; each calls this at the same place.

    A text is cut at 2,000 bytes.
    """
    if jax.process_count() == 1:
        return [text]
    sent = np.zeros(_LONGEST, np.uint8)
    code = np.frombuffer(text.encode()[:_LONGEST], np.uint8)
    sent[: len(code)] = code
    rows = np.asarray(multihost_utils.process_allgather(sent))
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def merged(mine: Mapping[str, str]) -> dict[str, str]:
    """The entries of all processes, of any length; each calls this at the same place.

    Of a name that several have, the first process's entry stays.
    """
    if jax.process_count() == 1:
        return dict(mine)
    sent = np.frombuffer(json.dumps(dict(mine)).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray(len(sent), np.int32)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(sent)] = sent
    rows = np.asarray(multihost_utils.process_allgather(padded))
    found: dict[str, str] = {}
    for row, length in zip(rows, lengths.ravel(), strict=True):
        found = json.loads(bytes(row[:length])) | found
    return found


def everywhere(act: Callable[[], T], what: str) -> T:
    """The result of `act`, which may fail with a UserError: if it does in one process, all stop.

    Args:
      act: done by every process.
      what: was attempted, e.g. "process 3 cannot read the bank: ..." begins with "cannot read the
        bank".

    Raises:
      UserError: the process's own, or one that says which process failed, and why.
    """
    result, error = None, None
    try:
        result = act()
    except UserError as raised:
        error = raised
    told = tell("" if error is None else str(error) or what)
    if error is not None:
        raise error
    for process, text in enumerate(told):
        if text:
            raise UserError(f"process {process} {what}: {text}")
    return result  # type: ignore[return-value]


def first(act: Callable[[], str], what: str) -> str:
    """The text that `act` gives in process 0, known to all; the others do not call it.

    Raises:
      UserError: it failed there; see `everywhere`.
    """
    made = everywhere(lambda: act() if jax.process_index() == 0 else "", what)
    return tell(made)[0]
