# SPDX-License-Identifier: Apache-2.0
"""What the local model and the server have in common: settings, and the length of a reply.

Both must show a model the same pixels (`cir_jax.servers.pictures`) and stop it at the same length,
or a run that moves from one to the other would change its captions for no visible reason.
"""

from typing import Any

from ml_collections import ConfigDict

from cir_jax.errors import UserError
from cir_jax.generation.captioner import Reply

TOKENS_PER_WORD = 4  # generous: a byte-level BPE writes rare words in more, common ones in 1 or 2
SPARE_TOKENS = 16  # "Sure, here is a caption:" must not cut the caption off


def token_limit(section: ConfigDict) -> int:
    """Tokens a reply may have: `max_tokens`, or derived from the words asked for.

    Four times the longest text that is accepted: a reply that runs into this limit is over-long
    anyway, and is listed as cut instead of being stored without its end.
    """
    return section.max_tokens or (
        TOKENS_PER_WORD * (section.max_words or 4 * section.words) + SPARE_TOKENS
    )


def check_section(section: ConfigDict) -> None:
    """The keys that every captioner with a model has.

    Raises:
      UserError: one of them is out of its range; it is named.
    """
    if not section.model:
        raise UserError("model is empty; name the model that shall write, or its folder")
    for key in ("temperature", "max_tokens", "max_side"):
        at_least(section, key, 0)
    if not 0 < section.top_p <= 1:
        raise UserError(f"top_p={section.top_p} is outside (0, 1]; 1 samples from all tokens")
    if token_limit(section) < 1:
        raise UserError(f"words={section.words} leaves no token to write; ask for 1 or more")


def at_least(section: ConfigDict, key: str, low: float) -> Any:
    """`section[key]`.

    Raises:
      UserError: it is below `low`.
    """
    if section[key] < low:
        raise UserError(f"{key}={section[key]} is below {low}; give {low} or more")
    return section[key]


def unreadable(key: str, error: UserError) -> Reply:
    """The reply to a request whose image cannot be read."""
    return Reply(key, "", f"unreadable: {error}", final=True)
