# SPDX-License-Identifier: Apache-2.0
"""The process of `cir-jax mcp`: its output belongs to the protocol, all else is standard error."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from typing import Any

from cir_jax import progress
from cir_jax.errors import UserError, nearest
from cir_jax.retrieval.search import answering
from cir_jax.retrieval.search.asking import Question
from cir_jax.retrieval.search.results import Answer

_THREADS = 2  # that read and shrink pictures


def serve(folders: Sequence[str], files: Sequence[str], opened: Callable[[str], Any]) -> None:
    """Answers on standard input and output until the input ends.

    Args:
      folders: of the indexes.
      files: folders from which images may be given.
      opened: folder -> index.

    Raises:
      UserError: an index cannot be opened, a folder is not there, or the package is not installed.
    """
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise UserError(
            "cir-jax mcp needs packages that are not installed: pip install 'cir_jax[serve]'"
        ) from None
    for folder in files:
        if not os.path.isdir(os.path.expanduser(folder)):
            raise UserError(f"--files: there is no folder {folder}")
    with redirect_stdout(sys.stderr):
        indexes = Indexes(folders, opened)
    asyncio.run(_run(indexes, [os.path.expanduser(folder) for folder in files]))


async def _run(indexes: "Indexes", files: Sequence[str]) -> None:
    from cir_jax.serving import mcp

    loop = asyncio.get_running_loop()
    # One question at a time is on the device.
    device, threads = ThreadPoolExecutor(1), ThreadPoolExecutor(_THREADS)

    async def answer(name: str, index: Any, question: Question) -> Answer:
        return await loop.run_in_executor(device, indexes.answer, name, question)

    backend = mcp.Backend(
        names=tuple(indexes.opened),
        find=indexes.find,
        answer=answer,
        aside=partial(loop.run_in_executor, threads),
        folders=tuple(files),
    )
    try:
        # The library keeps standard output for itself, and what prints gets standard error. The
        # model is loaded, which prints, after that, while the agent reads what the tools are.
        await mcp.server(backend, lambda: device.submit(indexes.warm)).run_stdio_async()
    finally:
        device.shutdown(wait=False, cancel_futures=True)
        threads.shutdown(wait=False, cancel_futures=True)


class Indexes:
    """Open indexes; each is looked at for a newer generation before it answers.

    Args:
      folders: of the indexes; the last part of each is its name.
      opened: folder -> index.
    """

    def __init__(self, folders: Sequence[str], opened: Callable[[str], Any]):
        from cir_jax.serving import served

        names = served.named(list(folders))
        self.opened = dict(zip(names, map(opened, folders), strict=True))

    def find(self, name: str | None) -> tuple[str, Any]:
        """(name, index); the first if none is named.

        Raises:
          UserError: there is none of that name.
        """
        if name is None:
            name = next(iter(self.opened))
        if name not in self.opened:
            raise UserError(
                f"there is no index {name[:80]!r}; there are: {', '.join(self.opened)}."
                f"{nearest(name[:80], self.opened)}"
            )
        return name, self.opened[name]

    def answer(self, name: str, question: Question) -> Answer:
        """What a question finds in the newest generation of an index."""
        try:
            self.opened[name] = self.opened[name].newer() or self.opened[name]
        except UserError as error:
            progress.say(f"index {name} goes on as it is: {error}")
        return answering.answer(self.opened[name], [question])[0]

    def warm(self) -> None:
        """Loads the models, so that the first question waits for less."""
        for name, index in self.opened.items():
            try:
                index.model.retriever(few=True)
            except UserError as error:  # told again to whoever asks
                progress.say(f"index {name}: {error}")
