# SPDX-License-Identifier: Apache-2.0
"""Texts from any OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`.

This is how captioning runs on a cluster: the model has the accelerators to itself, and many
requests are in flight at once. A server that is away is waited for, and none is trusted; see
`cir_jax.servers`.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from cir_jax.errors import UserError
from cir_jax.generation import caption_inputs
from cir_jax.generation.captioner import Reply, Request, sampling
from cir_jax.servers import pictures
from cir_jax.servers.client import Client, Refusals, RefusedError, Settings, WrongReply
from cir_jax.servers.retry import run_concurrently

if TYPE_CHECKING:
    import httpx2

KEYS = {
    "url": ("", "its OpenAI-compatible address, e.g. http://localhost:8000/v1", None),
    "concurrency": (8, "requests under way at a time", "[1, 1000]"),
    "per_minute": (0.0, "requests started per minute; 0 = no limit", "[0, 1e6]"),
    "timeout": (120.0, "seconds to wait for one reply", "(0, 1e6]"),
    "wait": (600.0, "give up after so many seconds without any reply", "[0, 1e9]"),
    "key_variable": ("OPENAI_API_KEY", "environment variable that holds the key, if any", None),
}
ENDPOINT = "/chat/completions"
LONGEST_REPLY = 4 << 20  # bytes; a caption has some hundred, a long list of models a million
_WITHOUT = "pip install 'cir_jax[caption]', or use captioner=local"


def check(section: ConfigDict) -> None:
    """Raises UserError for settings that no server could serve."""
    Captioner(section, 0)


class Captioner:
    """Asks a server; see `captioner.Captioner`.

    Args:
      section: `config.caption` or `config.rewrite`.
      seed: of the run.

    Raises:
      UserError: a config value that cannot work; it is named.
    """

    def __init__(self, section: ConfigDict, seed: int):
        caption_inputs.check_section(section)
        self._section, self._seed = section, seed
        self._limit = caption_inputs.token_limit(section)
        self._concurrency = int(caption_inputs.at_least(section, "concurrency", 1))
        if section.timeout <= 0:
            raise UserError(f"timeout={section.timeout} is no time; give the seconds of a reply")
        settings = Settings(
            url=section.url,
            endpoint=ENDPOINT,
            model=section.model,
            timeout=section.timeout,
            wait=caption_inputs.at_least(section, "wait", 0),
            per_minute=caption_inputs.at_least(section, "per_minute", 0),
            key_variable=section.key_variable,
            longest=LONGEST_REPLY,
        )
        self._client = Client(settings, ("captioner=server", _WITHOUT))
        self._refusals = Refusals(
            self._client.who,
            f"correct model={section.model!r}, max_side or max_tokens, or look at the server's log",
        )
        self.identity = {
            "captioner": "server",
            "model": section.model,
            "temperature": section.temperature,
            "top_p": section.top_p,
            "max_side": section.max_side,
        }

    @classmethod
    def from_config(cls, section: ConfigDict, seed: int, names: Sequence[str]) -> "Captioner":
        """See `captioner.Captioner`; nothing is asked of the server yet."""
        return cls(section, seed)

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request, in the order in which they come.

        Closing the iterator takes back what is in flight; no thread is left behind.

        Raises:
          UserError: the server stays away for longer than `wait`, denies access, does not know the
            model, or refuses the first requests.
        """
        connection = self._client.open()
        return run_concurrently(
            requests,
            lambda request: self._answer(connection, request),
            self._concurrency,
            connection,
        )

    async def _answer(self, connection: "httpx2.AsyncClient", request: Request) -> Reply:
        try:
            body = await asyncio.to_thread(self._body, request)
        except UserError as error:
            return caption_inputs.unreadable(request.key, error)

        def harmless() -> bytes:
            image = request.image and pictures.GreyImage()
            return self._body(replace(request, prompt="Say yes.", image=image))

        try:
            text, problem = await self._client.ask(connection, body, self._read, harmless)
        except RefusedError as error:
            why = self._refusals.refused(str(error))
            return Reply(request.key, "", why, final=True)
        self._refusals.success()
        return Reply(request.key, text, problem)

    def _body(self, request: Request) -> bytes:
        """The JSON of a request.

        Raises:
          UserError: its image cannot be read.
        """
        seed, temperature = sampling(request, self._seed, self._section.temperature)
        content: Any = request.prompt
        if request.image is not None:
            url = pictures.data_url(request.image, self._section.max_side, request.loading)
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": request.prompt},
            ]
        body = {
            "model": self._section.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._limit,
            "temperature": temperature,
            "seed": seed,
        }
        if temperature:
            body["top_p"] = self._section.top_p
        return json.dumps(body).encode()

    def _read(self, reply: bytes) -> tuple[str, str]:
        """(text, problem) of a reply.

        Raises:
          WrongReply: it holds none.
        """
        try:
            choice = json.loads(reply)["choices"][0]
            text, reason = choice["message"].get("content") or "", choice.get("finish_reason")
            text = text.strip()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise WrongReply("a reply without choices") from None
        if reason == "length":
            return text, f"cut at {self._limit} tokens"
        if reason == "content_filter":
            return "", "withheld by the server's content filter"
        return text, ""
