# SPDX-License-Identifier: Apache-2.0
"""Stage one: both sides train; the negatives of a query are the other targets of the global batch.

Source: equation 2 of arXiv 2404.11317; one direction, no symmetric term. With `loss.chunk` the
encoders run over that many rows at a time and are run again in the backward pass (gradient caching,
arXiv 2101.06983): the loss is still that of the whole batch, exactly. `loss.auxiliary` adds losses
that a model's own paper states, `loss.negative_types` replaces the kind of negatives, and
`loss.kind=sigmoid` asks of each pair alone, see `cir_jax.losses.sigmoid`.
"""

import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax.bank.bank import Bank
from cir_jax.contract import Functions
from cir_jax.errors import UserError, nearest
from cir_jax.losses import in_batch, negative_types, sigmoid
from cir_jax.params import BIAS, Params
from cir_jax.runtime import mesh as meshes
from cir_jax.training import stage

Rows = dict[str, jax.Array]


KEYS = {
    "kind": ("softmax", "what is done with the scores of a batch: softmax compares them, sigmoid "
             "asks of each pair alone, as SigLIP does", ("softmax", "sigmoid")),
    "bias": (-10.0, "of the sigmoid: what is added to each score over the temperature; where it is "
             "learned, its start", "[-1000, 1000]"),
    "temperature": (0.02, "of the softmax", "(0, 100]"),
    "learn_temperature": (False, "train it, from `temperature` on, with the bias of a sigmoid",
                          None),
    "auxiliary": ((), "losses of the model's own beside the contrastive one, 'name:weight'; the "
                      "model's file lists them", None),
    "negative_types": (("target",), "an ablation: what of another example replaces a part of the "
                       "triplet to make a negative; their losses are averaged",
                       ("target", "query", "text", "reference")),
    "chunk": (0, "images per encoder chunk over all devices (gradient caching), more where these "
                 "are more; 0 = all at once", "[0, 1e6]"),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """See `cir_jax.training.stage`."""

    temperature: float
    mesh: Mesh | None = None
    kind: str = stage.SOFTMAX
    bias: float = 0.0
    chunk: int = 0
    auxiliary: tuple[tuple[str, float], ...] = ()
    negative_types: tuple[str, ...] = ("target",)
    extra: dict[str, float] = field(default_factory=dict)
    fields: tuple[str, ...] = ("text", "reference_pixels", "target_pixels")
    roles: tuple[str, ...] = ("index", "query")
    index_is_query: bool = True
    reads: str = "triplets"
    needs_bank: bool = False

    @classmethod
    def from_config(cls, config: ConfigDict, functions: Functions, mesh: Mesh) -> "Stage":
        """Raises UserError for a batch of one or one that does not split into chunks that divide
        over the mesh, or for auxiliary losses or types of negatives that do not exist or do not go
        together."""
        loss = config.loss
        stage.check_negatives(config)
        chunk = meshes.fitting_chunk(config.batch, loss.chunk, mesh)
        auxiliary = _weights(loss.auxiliary, functions)
        types = _types(loss.negative_types)
        if set(types) & set(negative_types.CROSSED) and (loss.chunk or auxiliary):
            other = f"loss.chunk={loss.chunk}" if loss.chunk else f"loss.auxiliary={loss.auxiliary}"
            raise UserError(
                f"loss.negative_types={types} composes every reference with every text, which does "
                f"not go with {other}; leave one of them out"
            )
        extra = stage.temperature_leaf(config)
        if loss.kind == stage.SIGMOID:
            if types != ("target",):
                raise UserError(
                    f"loss.kind=sigmoid is of the targets of a batch, and loss.negative_types="
                    f"{types} are not of them; leave one of the two out"
                )
            extra |= {BIAS: loss.bias} if extra else {}
        return cls(loss.temperature, mesh, loss.kind, loss.bias, chunk, auxiliary, types, extra)

    @property
    def crosses(self) -> bool:
        """True if references are composed with texts of other rows."""
        return bool(set(self.negative_types) & set(negative_types.CROSSED))

    @property
    def packs_texts(self) -> bool:
        """False where single texts are taken out of a batch: in chunks, and where rows cross."""
        return not self.chunk and not self.crosses

    def loss(
        self,
        functions: Functions,
        query: Params,
        index: Params,
        batch: Rows,
        bank: Bank | None,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of each query over the batch's targets, and what is added to it, [B]."""

        def encode(rows: Rows, key: jax.Array) -> tuple[jax.Array, jax.Array, Rows]:
            pixels, text = (rows["reference_pixels"], rows["target_pixels"]), rows["text"]
            if self.auxiliary:
                return functions.training(query, *pixels, text, key)
            keys = jax.random.split(key, 3)
            reference, targets = functions.reference_and_target(
                index, *pixels, text, (keys[0], keys[1])
            )
            extras = {"reference": reference} if crosses else {}
            return functions.compose(query, reference, text, keys[2]), targets, extras

        crosses = self.crosses
        rows = {name: batch[name] for name in self.fields}
        composed, targets, extras = _in_chunks(encode, rows, key, self.chunk)
        tau = stage.temperature(self, query)
        metrics = {"temperature": jnp.asarray(tau)}
        if self.kind == stage.SIGMOID:
            assert self.mesh is not None  # every stage of a config has one
            bias = stage.bias(self, query)
            losses = sigmoid.sigmoid_loss(composed, targets, tau, bias, mesh=self.mesh)
            metrics |= {"bias": jnp.asarray(bias)}
        elif self.negative_types == ("target",):
            losses = in_batch.in_batch_loss(composed, targets, tau)
        else:
            crossed = None
            if crosses:
                crossed = _crossed(functions, query, index, rows, extras["reference"], key)
            kinds = negative_types.losses(self.negative_types, composed, targets, tau, crossed)
            losses = functools.reduce(operator.add, kinds.values()) / len(kinds)
            metrics |= {f"{name}_negatives": x.mean() for name, x in kinds.items()}
        if self.auxiliary:
            added = functions.auxiliary(query, composed, targets, extras, tau)
            metrics |= {"contrastive": losses.mean()}
            metrics |= {name: added[name].mean() for name, _ in self.auxiliary}
            losses = losses + sum(weight * added[name] for name, weight in self.auxiliary)
        return losses, metrics


def _weights(texts: Iterable[str], functions: Functions) -> tuple[tuple[str, float], ...]:
    """Names and weights of `loss.auxiliary`."""
    known = getattr(functions.module, "AUXILIARY", {})
    chosen: dict[str, float] = {}
    for text in texts:
        name, _, number = str(text).partition(":")
        if name not in known:
            there = "; ".join(f"{n}: {about}" for n, about in known.items())
            raise UserError(
                f"loss.auxiliary: model {functions.config.name!r} has no loss {name!r}"
                f"{f'; it has {there}' if there else ', nor any other'}.{nearest(name, known)}"
            )
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not 0 < weight < float("inf") or name in chosen:
            raise UserError(
                f"loss.auxiliary={text!r} is not name:weight with a weight above 0, each name "
                f"once; write for example {name}:0.5"
            )
        chosen[name] = weight
    return tuple(chosen.items())


def _types(names: Iterable[str]) -> tuple[str, ...]:
    """The types of negatives, in one order whatever that of the config."""
    names = tuple(names)
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"loss.negative_types={names} must name one or more of "
            f"{', '.join(negative_types.TYPES)}, each once"
        )
    return tuple(name for name in negative_types.TYPES if name in names)


def _crossed(
    functions: Functions,
    query: Params,
    index: Params,
    rows: Rows,
    reference: jax.Array,
    key: jax.Array,
) -> Callable[[jax.Array], jax.Array]:
    """Shift -> queries of each reference with the text so many examples further on.

    The encoders run once where the model lets them: a text that its reference depends on, or that
    it does not encode apart from the reference, is encoded at every shift.
    """
    pixels, text = rows["reference_pixels"], rows["text"]
    keys = jax.random.split(key, 3)

    def turned(x: jax.Array, shift: jax.Array) -> jax.Array:
        return jnp.roll(x, -shift, axis=0)

    if functions.per_triplet:

        def from_pixels(shift: jax.Array) -> jax.Array:
            other = turned(text, shift)
            anew = functions.reference(index, pixels, other, keys[0])
            return functions.compose(query, anew, other, keys[2])

        return from_pixels

    if functions.fuses:
        features = functions.text_features(query, text, keys[2])
        return lambda shift: functions.fuse(query, reference, turned(features, shift), keys[2])
    return lambda shift: functions.compose(query, reference, turned(text, shift), keys[2])


def _in_chunks(encode: Callable, rows: dict[str, jax.Array], key: jax.Array, chunk: int) -> Any:
    size = rows["target_pixels"].shape[0]
    if not chunk or chunk == size:
        return encode(rows, key)
    count = size // chunk
    # Chunk j holds rows j, j + count, ...: a split of each device's rows, so none changes device.
    split = jax.tree.map(lambda x: x.reshape(chunk, count, *x.shape[1:]).swapaxes(0, 1), rows)
    keys = jax.random.split(key, count)
    out = jax.lax.map(lambda xs: jax.checkpoint(encode)(*xs), (split, keys))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:]), out)
