# SPDX-License-Identifier: Apache-2.0
"""Several places that together hold a model, opened: an adapter becomes one with its base."""

from collections.abc import Sequence
from pathlib import Path

from cir_jax import progress
from cir_jax.convert import lora
from cir_jax.convert.sources import Source, is_adapter, open_adapter, open_source
from cir_jax.errors import UserError


def sources_of(places: Sequence[str | Path]) -> list[Source]:
    """The sources at `places`, in their order, without adapters: those are merged into their base.

    Raises:
      UserError: see `open_source`; or an adapter is given without a base, or with several.
    """
    adapters = [place for place in places if is_adapter(place)]
    opened = [open_source(place) for place in places if place not in adapters]
    for place in adapters:
        if not opened:
            open_source(place)  # which says what an adapter lacks
        if len(opened) > 1:
            raise UserError(
                f"{place} is a LoRA adapter, and it is not known which of "
                f"{', '.join(str(one.place) for one in opened)} it was trained on; give it with "
                "that one alone (`cir-jax import` writes the result as a run folder)"
            )
        opened = [lora.merged(opened[0], *open_adapter(place))]
        progress.say(f"{place}: a LoRA adapter, merged into {opened[0].place}")
    return opened
