# SPDX-License-Identifier: Apache-2.0
"""The contract of a model: three functions, two parameter trees, and nothing else.

Axis letters, everywhere in this project:
B batch, N images, R reference rows, K target rows, T text tokens, C width, D embedding, S pixels.

    reference(pixels, text)  -> [B, R, C]   on INDEX parameters; what stage two caches
    target(pixels)           -> [B, K, D]   on INDEX parameters; unit rows; bank and gallery rows
    compose(reference, text) -> [B, D]      on QUERY parameters; unit query
    score                     = max over K of <query, target row>

A model is one module of `cir_jax.models` (or a file of yours) that defines

    TOKENIZER       name of a tokenizer of `cir_jax.data.tokens`; "file" for one that comes with
                    the weights
    CUT_PADDING     True if a text may be cut to the longest caption of its batch
    REFERENCE_ROWS  "per_image", or "per_triplet" where the reference depends on the text
    Model           an `nnx.Module`: Model(config, rngs=...), with the three methods above
    image_size(config)  side S of the square input, in pixels
    roles(config)       path rules -> "index", "query", "statistic" or "pretrain"
    sharding(config)    path rules -> one mesh axis name or None per dimension

and where it needs them

    PACKS_TEXTS     True if its methods take packed texts (`cir_jax.towers.packed`) in place of
                    [B, T] ids; training then computes hardly any padding. For towers that see each
                    text apart from all others; not for one that reads its padding too, or looks at
                    the image of a text's row
                    Each of TOKENIZER, CUT_PADDING and PACKS_TEXTS may be a function of `config`,
                    for a model whose towers differ in it
    encoder         an attribute of a `Model`: the towers it is built of, see
                    `cir_jax.towers.encoders`. Their normalisation, filter and tokenizer are then
                    the model's; those of one without are CLIP's
    prompted        a function of config and a tokenizer -> the tokenizer that puts texts into the
                    words that the model was trained with, see `cir_jax.data.prompts`
    INPUT_KEYS      keys of its KEYS that its vectors depend on, and that no shape says -> "index"
                    if targets or references do, "query" if queries alone do. Stage two takes them
                    from the run it starts from, and they are part of every fingerprint
    TEXT_ALONE      True if a text composed with a reference of zeros is a query by the text alone.
                    A model with CLIP's `logit_scale`, which stage zero trains so, need not say it
    NEW             regexes of paths that start at random, with a message, beside weights that lack
                    them
    AUXILIARY       {name: what it is}: losses of its own for stage one, see `loss.auxiliary` of
                    configs/base.py; the model then has two more methods,
        training(reference_pixels, target_pixels, text, key) -> ([B, D], [B, K, D], extras)
                    query and targets as by the three methods, and whatever per example the losses
                    need, {name: [B, ...]}; runs on a part of the batch under gradient caching
        auxiliary(query, targets, extras, temperature) -> {name: [B] losses}
                    over the whole batch, for every name of AUXILIARY
    reference_and_target(reference_pixels, target_pixels, text, keys)   a method that is
                    (reference(reference_pixels, text, keys[0]), target(target_pixels, keys[1])) by
                    one pass of what both go through, see `cir_jax.towers.pairs`: gradients are then
                    reduced over the devices once, not twice. Worth it where the image side trains;
                    a class that overrides `reference` or `target` alone is passed twice again
    text_features, fuse   methods with compose(reference, text, key) = fuse(reference,
                    text_features(text, key), key), where a query is cheap once the text is encoded
    embedder        embedder(config): what turns files and texts into what the methods take, in
                    place of pixels and token ids, see `cir_jax.embedders.inputs`
    PLAIN           True if the model means something with the parameters it is drawn with, so that
                    it needs no weights
    halves          a method halves(reference, text) -> ([B, D], [B, D]) whose sum is
                    compose(reference, text): what the image gives to the query and what the text
                    does. Only for a query that is a sum; a search then tells why an image was found

A method may take the dropout key of a training step, `key=None`; a bank, a gallery and an
evaluation never give one.

`config` is the `model` section of the run's config. Roles say when a parameter trains: stage one
trains "index" and "query"; stage two trains "query" only; "pretrain" (CLIP's `logit_scale`, or both
towers of a model that keeps its CLIP frozen) trains in stage zero alone; a "statistic" (of a
BatchNorm that stays in evaluation mode) never does. A model never sees a mesh, a bank, a stage or a
data set; trainer, bank and evaluator call the three functions and nothing else.

Stage one uses one tree as both index and query. Stage two keeps that tree as the index and trains a
copy of the query part. Source: section 3.3 of arXiv 2404.11317, where the image side is frozen.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from cir_jax import plugins, rules
from cir_jax.data.pixels import CLIP, Normalisation
from cir_jax.errors import UserError
from cir_jax.params import LOGIT_SCALE, Params
from cir_jax.runtime import sharding
from cir_jax.towers import lora, on_devices
from cir_jax.towers.inputs import Inputs
from cir_jax.towers.layers import stacked_keys
from cir_jax.towers.packed import Text

ROLES = ("index", "query", "statistic", "pretrain")
PACKAGE = "cir_jax.models"


def normalize(pixels: jax.Array, how: Normalisation = CLIP) -> jax.Array:
    """uint8 [..., 3] -> float32, by the model's mean and deviation; floats pass unchanged.

    Done on the device: a quarter of the bytes cross to it.
    """
    if pixels.dtype != jnp.uint8:
        return pixels
    mean = jnp.asarray(how.mean, jnp.float32)
    deviation = jnp.asarray(how.deviation, jnp.float32)
    shape = (1,) * (pixels.ndim - 1) + (3,)
    scaled = pixels.astype(jnp.float32) / 255.0
    return (scaled - mean.reshape(shape)) / deviation.reshape(shape)


@dataclass(frozen=True, eq=False)
class Functions:
    """A model as pure functions of a flat parameter dict. Hashable by identity, for jit caches.

    Attributes:
      module: the plug-in module.
      config: the `model` section of the config.
      graph: the static part of the nnx module.
      keys: parameter path -> its key tuple in the nnx state.
      abstract: parameter path -> jax.ShapeDtypeStruct.
      stacked: paths of the parameters whose first axis is the layers of a scan.
      inputs: how pictures and texts become what it takes.
      fsdp: the devices over whose axis "data" parameters are split; None if they are not.
      mesh: the devices over whose axis "data" the batches are split that it trains on.
      adapters: factors that a tree of parameters may hold beside those of the model, see
        `cir_jax.towers.lora`; a tree that lacks them is the model as it is. None for none.
    """

    module: ModuleType
    config: Any
    graph: Any
    keys: dict[str, tuple]
    abstract: Params
    stacked: frozenset[str]
    inputs: Inputs
    fsdp: Mesh | None = None
    mesh: Mesh | None = None
    adapters: lora.Adapters | None = None

    def reference(
        self, params: Params, pixels: jax.Array, text: Text, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, S, S, 3] and [B, T] -> [B, R, C], on index parameters."""
        return self._call(params, "reference", self._normal(pixels), text, key=key)

    def target(self, params: Params, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B, S, S, 3] -> [B, K, D] unit rows, on index parameters."""
        return self._call(params, "target", self._normal(pixels), key=key)

    def reference_and_target(
        self,
        params: Params,
        reference_pixels: jax.Array,
        target_pixels: jax.Array,
        text: Text,
        keys: tuple[jax.Array | None, jax.Array | None] = (None, None),
    ) -> tuple[jax.Array, jax.Array]:
        """`reference` of the first pixels and `target` of the second, in one pass if the model can.

        `keys` are the dropout keys of the two.
        """
        if not self.passes_once:
            reference = self.reference(params, reference_pixels, text, keys[0])
            return reference, self.target(params, target_pixels, keys[1])
        pixels = self._normal(reference_pixels), self._normal(target_pixels)
        with sharding.split_over(self.fsdp, self.mesh):
            return self.merged(params).reference_and_target(*pixels, text, keys)

    @property
    def passes_once(self) -> bool:
        """True if the model has `reference_and_target`, and it is that of its other two methods."""
        return self._defined_with("reference_and_target", "reference", "target")

    def _defined_with(self, name: str, *others: str) -> bool:
        """True if a method is there, and no class that inherits it has replaced one of the others.

        A class of a user that inherits it from a model and overrides one of the others would
        otherwise be trained by, or explained by, what it has replaced.
        """
        classes = self.module.Model.__mro__
        first = {
            method: next((i for i, c in enumerate(classes) if method in vars(c)), len(classes))
            for method in (name, *others)
        }
        return first[name] < len(classes) and first[name] <= min(first[o] for o in others)

    def compose(
        self, params: Params, reference: jax.Array, text: Text, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, R, C] and [B, T] -> [B, D] unit queries, on query parameters.

        `key` is the dropout key of a training step; None switches dropout off.
        """
        return self._call(params, "compose", reference, text, key=key)

    def halves(
        self, params: Params, reference: jax.Array, text: Text
    ) -> tuple[jax.Array, jax.Array]:
        """[B, R, C] and [B, T] -> [B, D] twice: `compose` as a sum of image and text; if `sums`."""
        return self._call(params, "halves", reference, text, key=None)

    @property
    def text_alone(self) -> bool:
        """True if a text composed with a reference of zeros has a meaning, as in pretraining."""
        return LOGIT_SCALE in self.abstract or getattr(self.module, "TEXT_ALONE", False)

    def input_keys(self, side: str) -> dict[str, Any]:
        """Key of INPUT_KEYS -> its value in the config, of the side "index" or "query"."""
        known = getattr(self.module, "INPUT_KEYS", {})
        values = {key: self.config[key] for key, of in known.items() if of == side}
        return {f"model.{key}": list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @property
    def sums(self) -> bool:
        """True if the model has `halves`, and they are those of its `compose`."""
        return self._defined_with("halves", "compose", "fuse")

    def training(
        self,
        params: Params,
        reference_pixels: jax.Array,
        target_pixels: jax.Array,
        text: Text,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(query, targets, extras) of a model that has auxiliary losses; one tree is both sides."""
        pixels = self._normal(reference_pixels), self._normal(target_pixels)
        with sharding.split_over(self.fsdp, self.mesh):
            return self.merged(params).training(*pixels, text, key)

    def auxiliary(
        self,
        params: Params,
        query: jax.Array,
        targets: jax.Array,
        extras: dict[str, jax.Array],
        temperature: jax.Array | float,
    ) -> dict[str, jax.Array]:
        """The auxiliary losses over a whole batch, name -> [B] float32."""
        with sharding.split_over(self.fsdp, self.mesh):
            return self.merged(params).auxiliary(query, targets, extras, temperature)

    def text_features(self, params: Params, text: Text, key: jax.Array | None) -> jax.Array:
        """[B, T] -> [B, ...] what `fuse` takes, on query parameters; only if `fuses`."""
        return self._call(params, "text_features", text, key=key)

    def fuse(
        self, params: Params, reference: jax.Array, features: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """[B, R, C] and [B, ...] -> [B, D] unit queries, on query parameters; only if `fuses`."""
        return self._call(params, "fuse", reference, features, key=key)

    @property
    def fuses(self) -> bool:
        """True if the model composes in two steps, `text_features` and `fuse`."""
        return hasattr(self.module.Model, "fuse")

    def _normal(self, pixels: jax.Array) -> jax.Array:
        return normalize(pixels, self.inputs.normalisation)

    def _call(self, params: Params, name: str, *inputs: Text, key: jax.Array | None) -> Any:
        method = getattr(self.merged(params), name)
        takes_key = "key" in inspect.signature(method).parameters
        with sharding.split_over(self.fsdp, self.mesh):
            return method(*inputs, key=key) if takes_key else method(*inputs)

    def init(self, seed: int) -> Params:
        """Random parameters, drawn by the model's own initialisers."""
        return self._init(jax.random.key(seed))

    @cached_property
    def _init(self) -> Callable[[jax.Array], Params]:
        def draw(key: jax.Array) -> Params:
            model = self.module.Model(self.config, rngs=nnx.Rngs(key))
            flat = flatten_dict(nnx.to_pure_dict(nnx.state(model)))
            return {path: flat[keys] for path, keys in self.keys.items()}

        return jax.jit(draw)

    @cached_property
    def embedder(self) -> Any:
        """What the model has in place of pixels and token ids, see `embedder` above; else None."""
        made = getattr(self.module, "embedder", None)
        return made(self.config) if made else None

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.module.image_size(self.config)

    @property
    def factors(self) -> Params:
        """Path -> jax.ShapeDtypeStruct of the factors of its adapters, which `abstract` lacks."""
        return {} if self.adapters is None else self.adapters.shapes

    @property
    def sharding_rules(self) -> list[tuple[str, tuple]]:
        """(regex of a path, mesh axis or None per dimension) of the model."""
        return self.module.sharding(self.config)

    @property
    def per_triplet(self) -> bool:
        """True if the reference depends on the text."""
        return self.module.REFERENCE_ROWS == "per_triplet"

    @cached_property
    def reference_shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self._shapes[0].shape[1:]

    @cached_property
    def target_shape(self) -> tuple[int, int]:
        """(K, D)."""
        return self._shapes[1].shape[1:]

    @cached_property
    def roles(self) -> dict[str, str]:
        """Parameter path -> role, for every parameter."""
        found = rules.match(self.module.roles(self.config), self.abstract, "model roles")
        unknown = sorted(set(found.values()) - set(ROLES))
        if unknown:
            raise UserError(f"model roles {unknown} are unknown; use {', '.join(ROLES)}")
        return found

    @cached_property
    def index_paths(self) -> list[str]:
        """Sorted paths of the parameters that `target` or `reference` read, whatever their role."""

        def rows(params: Params, pixels: jax.Array, text: jax.Array) -> tuple:
            return self.target(params, pixels), self.reference(params, pixels, text)

        return self._read_by(rows, *self._example)

    @cached_property
    def query_paths(self) -> list[str]:
        """Sorted paths of the parameters that `compose` reads."""
        _, text = self._example
        reference = jax.ShapeDtypeStruct((1, *self.reference_shape), jnp.float32)
        return self._read_by(self.compose, reference, text)

    @cached_property
    def training_paths(self) -> list[str]:
        """Sorted paths of the parameters that `training` reads."""
        pixels, text = self._example
        return self._read_by(self.training, pixels, pixels, text, jax.random.key(0))

    def _read_by(self, function: Callable, *inputs: jax.ShapeDtypeStruct | jax.Array) -> list[str]:
        traced = jax.make_jaxpr(function)(self.abstract, *inputs).jaxpr
        read = {id(x) for equation in traced.eqns for x in equation.invars}
        paths = sorted(self.abstract)  # the order in which a dict is flattened
        leaves = traced.invars[: len(paths)]
        return [path for path, x in zip(paths, leaves, strict=True) if id(x) in read]

    @property
    def _example(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        pixels = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.uint8)
        return pixels, jax.ShapeDtypeStruct((1, 8), jnp.int32)

    @cached_property
    def _shapes(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        pixels, text = self._example
        return (
            jax.eval_shape(self.reference, self.abstract, pixels, text),
            jax.eval_shape(self.target, self.abstract, pixels),
        )

    def merged(self, params: Params) -> Any:
        """The nnx module with these parameters."""
        flat = {keys: params[path] for path, keys in self.keys.items()}
        model = nnx.merge(self.graph, unflatten_dict(flat))
        if self.adapters is not None:
            lora.attach(model, self.keys, params, self.adapters.scale)
        return model


def input_keys_of(name: str) -> list[str]:
    """The INPUT_KEYS of the model called `name`.

    Raises:
      UserError: no such model.
    """
    return list(getattr(plugins.load(PACKAGE, name, marker="Model"), "INPUT_KEYS", {}))


def build(config: Any, fsdp: Mesh | None = None, mesh: Mesh | None = None) -> Functions:
    """The functions of the model `config.name`, built abstractly: no memory is allocated.

    Args:
      config: the `model` section of a run's config.
      fsdp: devices over whose axis "data" its parameters will be split, see
        `cir_jax.runtime.sharding`; None for those that hold them whole. What it computes is the
        same.
      mesh: devices over which batches are split in training; gradients cross them in fewer bytes.

    Raises:
      UserError: no such model (what exists is listed), or the plug-in lacks a part of the contract.
    """
    module = plugins.load(PACKAGE, config.name, marker="Model")
    needed = ("TOKENIZER", "CUT_PADDING", "REFERENCE_ROWS", "image_size", "roles", "sharding")
    missing = [n for n in needed if not hasattr(module, n)]
    if missing:
        raise UserError(
            f"model {config.name!r} ({module.__file__}) lacks {', '.join(missing)}; "
            "the module docstring of cir_jax/contract.py says what each must be"
        )
    if module.REFERENCE_ROWS not in ("per_image", "per_triplet"):
        raise UserError(
            f"REFERENCE_ROWS = {module.REFERENCE_ROWS!r} in {module.__file__}; "
            "use 'per_image' or 'per_triplet'"
        )
    for together in (("AUXILIARY", "training", "auxiliary"), ("text_features", "fuse")):
        has = [n for n in together if hasattr(module if n.isupper() else module.Model, n)]
        if has and len(has) < len(together):
            raise UserError(
                f"model {config.name!r} ({module.__file__}) has {', '.join(has)}, but "
                f"{', '.join(together)} belong together; define all of them or none"
            )
    config, model = on_devices.resolved(config, module.Model)
    graph, state = nnx.split(model)
    flat = flatten_dict(nnx.to_pure_dict(state))
    # Not by flatten_dict(sep="/"): it wants keys that are words, and those of a list are numbers,
    # which nnx.merge wants back.
    keys = {"/".join(map(str, key)): key for key in flat}
    abstract = {path: flat[key] for path, key in keys.items()}
    layered = stacked_keys(model)
    stacked = frozenset(path for path, key in keys.items() if key in layered)
    inputs = Inputs(module, config, getattr(model, "encoder", None))
    inputs.check()
    return Functions(module, config, graph, keys, abstract, stacked, inputs, fsdp, mesh)


def is_plain(name: str) -> bool:
    """Whether a model needs no weights, see PLAIN.

    Raises:
      UserError: no such model; what exists is listed.
    """
    return getattr(plugins.load(PACKAGE, name, marker="Model"), "PLAIN", False)
