# SPDX-License-Identifier: Apache-2.0
"""The towers of all families, by name: what `model.tower` may be of a model that takes any pair.

A family is a module with

    names() -> tuple of the names of its sizes
    owns(name) -> whether a name, of these or written out, is one of its own
    encoder(name) -> Encoder, or UserError for a size that no encoder can have
"""

from cir_jax.errors import UserError, nearest
from cir_jax.towers.clip import encoder as clip
from cir_jax.towers.encoder import Encoder
from cir_jax.towers.siglip import encoder as siglip
from cir_jax.towers.tips import encoder as tips

FAMILIES = (clip, siglip, tips)


def find(name: str) -> Encoder:
    """The towers called `name`.

    Raises:
      UserError: there are none (what exists is listed), or a size that no encoder can have.
    """
    for family in FAMILIES:
        if family.owns(name):
            return family.encoder(name)
    known = [one for family in FAMILIES for one in family.names()]
    raise UserError(
        f"no tower {name!r}; there are: {', '.join(known)}.{nearest(name.partition('+')[0], known)}"
        " A size of your own is written out, as sizes.py in each folder of cir_jax/towers says"
    )
