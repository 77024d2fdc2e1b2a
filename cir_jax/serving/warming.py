# SPDX-License-Identifier: Apache-2.0
"""Compiles every program that questions need, before the first one comes.

A batch is filled up to a power of two and a text to one of few lengths, so there are few shapes:
each is run once. What is rare (more than `batch` images in one batch of questions, hundreds of
results) is compiled when it first comes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from cir_jax import progress
from cir_jax.data import tokens
from cir_jax.retrieval.search import answering
from cir_jax.retrieval.search.asking import Question

_SCREEN = 50  # results that a page asks for at a time


def warm(index: Any, batch: int) -> None:
    """Runs each shape once, on an index that is not in use yet.

    Args:
      index: see `cir_jax.open_index`.
      batch: most questions at once.
    """
    steps = [*_of_model(index.model, batch), *_of_index(index, batch)]
    with progress.counter(len(steps), "compiling") as counter:
        for step in steps:
            step()
            counter.update(1)


def _of_model(model: Any, batch: int) -> Iterator[Callable[[], Any]]:
    """Calls of the model."""
    for size in powers(batch):
        yield partial(model.encode_images, _pictures(size))
        for text in _texts(model):
            yield partial(model.encode_queries, _pictures(size), [text] * size)
            if model.text_alone:
                yield partial(model.encode_queries, None, [text] * size)


def _of_index(index: Any, batch: int) -> Iterator[Callable[[], Any]]:
    """Questions to the index."""
    if not len(index.store):
        return
    where = _nearly_all(index)
    for k, condition, most in ((10, "", batch), (10, where, batch), (_SCREEN, "", 1)):
        for size in powers(most):
            questions = [_question(f"a {i}", k, condition) for i in range(size)]
            yield partial(answering.answer, index, questions)
    if index.model.explains:  # one question at a time
        for text in _texts(index.model):
            yield partial(answering.answer, index, [replace(_question(text, 10), why=True)])


def powers(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to the first that holds `most`."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield size


def _question(text: str, k: int, where: str = "") -> Question:
    """One about a picture of its own; equal ones would be encoded once."""
    return Question(images=tuple(_pictures(1)), text=text, k=k, where=where)


def _pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((8, 8, 3), 99, np.uint8)) for _ in range(count)]


def _texts(model: Any) -> list[str]:
    """A text of each length that texts are filled up to."""
    retriever = model.retriever(few=True)
    context = retriever.tokenizer.context
    if not retriever.functions.inputs.cut_padding:
        return ["a"]
    lengths = {tokens.fit(n, context, retriever.text_lengths) for n in range(2, context + 1)}
    return [" ".join(["a"] * (length - 2)) for length in sorted(lengths)]


def _nearly_all(index: Any) -> str:
    """A condition that one image does not meet: that a question has one makes another program."""
    name = index.catalogue.table["name"][0].as_py().replace("'", "''")
    return f"name != '{name}'"
