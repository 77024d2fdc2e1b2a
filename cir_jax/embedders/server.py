# SPDX-License-Identifier: Apache-2.0
"""Vectors from any embeddings server that speaks like OpenAI's: vLLM, SGLang, Infinity, Jina, ours.

Nothing is sent anywhere but to the address that is given. A server that is away is waited for, and
none is trusted, see `cir_jax.servers`. Of a request with several inputs that is refused, each is
asked for alone, so that the one at fault is found.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cir_jax.embedders import forms
from cir_jax.embedders.embedder import Answered
from cir_jax.embedders.items import Item
from cir_jax.errors import ServerError
from cir_jax.servers.client import Client, Refusals, RefusedError, Settings
from cir_jax.servers.retry import run_concurrently

if TYPE_CHECKING:
    import httpx2

LONGEST_REPLY = 32 << 20  # bytes; 128 vectors of 8,192 values take 24 million in JSON
_HARMLESS = Item(b"", "", "yes", "", "text", "a plain text")
_WITHOUT = (
    "pip install 'cir_jax[caption]', or name a folder of sentence-transformers in model.tower and "
    "leave model.url empty"
)


class Server:
    """Asks a server; see `embedder.Embedder`.

    Args:
      section: the section `model` of a config, with the keys of `cir_jax.models.served`.

    Raises:
      UserError: a value that cannot work; it is named.
    """

    def __init__(self, section: Any):
        self._section, self._form = section, forms.FORMS[section.form]
        settings = Settings(
            url=section.url,
            endpoint=forms.ENDPOINT,
            model=section.tower,
            timeout=section.timeout,
            wait=section.wait,
            per_minute=section.per_minute,
            key_variable=section.key_variable,
            longest=LONGEST_REPLY,
            model_key="model.tower",
        )
        self._client = Client(settings, ("model.url", _WITHOUT))
        self.who = self._client.who
        self.composes = self._form.composes
        self.tells = self._form.tells
        self._refusals = Refusals(
            self.who,
            f"correct model.tower={section.tower!r} or model.form={section.form!r}, or look at the "
            "server's log",
        )
        self.identity = {"model": section.tower, "dimensions": section.dimensions}

    def answers(self, items: Iterable[Item]) -> Iterator[Answered]:
        """See `embedder.Embedder`; at most `concurrency` requests are under way."""
        connection = self._client.open()
        found = run_concurrently(
            self._groups(items),
            lambda group: self._answer(connection, group),
            self._section.concurrency,
            connection,
        )
        for several in found:
            yield from several

    def _groups(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """The inputs of each request."""
        most = self._section.per_request if self._form.several else 1
        kind = (lambda item: bool(item.image)) if self._form.by_kind else (lambda item: True)
        for _, alike in itertools.groupby(items, kind):
            while group := list(itertools.islice(alike, most)):
                yield group

    async def _answer(
        self, connection: "httpx2.AsyncClient", group: Sequence[Item]
    ) -> list[Answered]:
        try:
            reply = await self._asked(connection, group)
        except RefusedError as error:
            if len(group) > 1:
                alone = [await self._answer(connection, [item]) for item in group]
                return [one for several in alone for one in several]
            why = self._refusals.refused(str(error))
            said = (
                f"{group[0].name}: {self.who} has no vector for it ({why}); leave it out, shorten "
                "the text, or set model.max_side to send a smaller image"
            )
            return [Answered(group, (), problem=said)]
        self._refusals.success()
        return [Answered(group, reply.vectors, reply.encoding, reply.tokens)]

    async def _asked(self, connection: "httpx2.AsyncClient", group: Sequence[Item]) -> forms.Reply:
        def read(reply: bytes) -> forms.Reply:
            try:
                return forms.read(reply, len(group))
            except ServerError as error:
                raise ServerError(f"{self.who}: {error}; it is no embeddings server") from None

        body = self._body(group)
        return await self._client.ask(connection, body, read, lambda: self._body([_HARMLESS]))

    def _body(self, group: Sequence[Item]) -> bytes:
        return self._form.body(self._section.tower, group, self._section.dimensions)
