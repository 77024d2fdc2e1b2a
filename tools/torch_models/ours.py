# SPDX-License-Identifier: Apache-2.0
"""Our encoders layer by layer, under the layer names of `tools.torch_models.clip`, and how far two
such traces are apart.

Layers are run one at a time, by the modules of the model itself; the last three values, reference,
target and query, come from the model's own functions, which scan over all layers at once.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.contract import Functions
from cir_jax.params import Params
from cir_jax.towers.clip.eva import EvaTransformer, angles
from cir_jax.towers.clip.resnet import ModifiedResNet

Layers = Iterator[tuple[str, jax.Array]]


def trace(
    functions: Functions, params: Params, pixels: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Layer name -> output of the layer, float32, in order of execution.

    Args:
      functions: a model that has CLIP's encoders, `visual` and `text`.
      params: one tree, index and query.
      pixels: [B, S, S, 3] normalised, float32.
      tokens: [B, T] ids.
    """
    model = functions.merged(params)
    found = encoders(model.visual, model.text, pixels, tokens)
    reference, target, query = embed(functions, params, params, pixels, tokens)
    return found | {"reference": reference[:, 0], "target": target[:, 0], "query": query}


def encoders(
    visual: nnx.Module, text: nnx.Module, pixels: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Layer name -> output of the layer, float32, of CLIP's two encoders."""
    pixels, tokens = jnp.asarray(pixels, jnp.float32), jnp.asarray(tokens, jnp.int32)
    found = {f"visual/{name}": x for name, x in _image_layers(visual, pixels)}
    found |= {f"text/{name}": x for name, x in _text_layers(text, tokens)}
    return {name: np.asarray(x, np.float32) for name, x in found.items()}


def embed(
    functions: Functions, index: Params, query: Params, pixels: np.ndarray, tokens: np.ndarray
) -> list[np.ndarray]:
    """Reference [B, R, C] and target [B, K, D] of the index, query [B, D] of the query tree."""
    inputs = jnp.asarray(pixels, jnp.float32), jnp.asarray(tokens, jnp.int32)
    return [np.asarray(x, np.float32) for x in _embed(functions, index, query, *inputs)]


def layers(stack: nnx.Module) -> list[tuple[Any, Any]]:
    """(graph, state) of each layer of stacked ones."""
    graph, stacked = nnx.split(stack)
    count = len(jax.tree.leaves(stacked)[0])
    return [(graph, jax.tree.map(lambda x, n=n: x[n], stacked)) for n in range(count)]


@partial(jax.jit, static_argnums=0)
def run_layer(graph: Any, state: Any, *inputs: jax.Array) -> jax.Array:
    """Parameters are arguments: one program serves all layers."""
    return nnx.merge(graph, state)(*inputs)


def differences(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Layer name -> largest difference, divided by the largest value of the layer if over 1.

    A layer of one trace only, or of another shape, or with a value that is no number, is infinitely
    far apart.
    """
    found = {}
    for name in [*first, *(n for n in second if n not in first)]:
        a, b = first.get(name), second.get(name)
        if a is None or b is None or a.shape != b.shape:
            found[name] = float("inf")
            continue
        far = np.abs(a - b).max() / max(1.0, np.abs(a).max())
        found[name] = float(far) if np.isfinite(far) else float("inf")
    return found


@partial(jax.jit, static_argnums=0)
def _embed(
    functions: Functions, index: Params, query: Params, pixels: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, ...]:
    reference = functions.reference(index, pixels, tokens)
    return reference, functions.target(index, pixels), functions.compose(query, reference, tokens)


def _image_layers(tower: nnx.Module, pixels: jax.Array) -> Layers:
    if not isinstance(tower, ModifiedResNet):
        turns = isinstance(tower, EvaTransformer)
        angle = (jnp.asarray(angles(tower.size)),) if turns else ()
        yield from _blocks(tower, "stem", pixels, *angle)
        yield "feature", _run(tower, "__call__", pixels)
        return
    x = _run(_without_blocks(tower), "features", pixels)
    yield "stem", x
    for number in (1, 2, 3, 4):
        for i, block in enumerate(getattr(tower, f"stage{number}")):
            x = _run(block, "__call__", x)
            yield f"stage {number}/{i}", x
    yield "feature", _run(tower.pool, "__call__", x)


def _text_layers(tower: nnx.Module, tokens: jax.Array) -> Layers:
    mask = _run(tower, "mask", tokens)
    for layer in _blocks(tower, "embedding", tokens, *(() if mask is None else (mask,))):
        yield layer
        x = layer[1]
    yield "norm", _run(tower.norm_out, "__call__", x)
    yield "feature", _run(tower, "__call__", tokens)


def _blocks(tower: nnx.Module, first: str, x: jax.Array, *more: jax.Array) -> Layers:
    """What enters the blocks, called `first`, then the output of each of them, given `more`."""
    x = _run(_without_blocks(tower), "tokens", x)
    yield first, x
    graph, stacked = nnx.split(tower.blocks)
    for number in range(tower.blocks.norm1.scale.shape[0]):
        one = jax.tree.map(lambda leaf, n=number: leaf[n], stacked)
        x = _apply(graph, "__call__", one, x, *more)
        yield f"block {number}", x


def _without_blocks(tower: nnx.Module) -> nnx.Module:
    """The same tower of no layers, and with nothing after them."""
    bare = nnx.merge(*nnx.split(tower))
    if isinstance(bare, ModifiedResNet):
        for number in (1, 2, 3, 4):
            setattr(bare, f"stage{number}", nnx.List())
        return bare
    graph, stacked = nnx.split(bare.blocks)
    bare.blocks = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[:0], stacked))
    bare.norm_out = _Same()
    return bare


class _Same(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def _run(module: nnx.Module, method: str, x: jax.Array) -> Any:
    graph, state = nnx.split(module)
    return _apply(graph, method, state, x)


@partial(jax.jit, static_argnums=(0, 1))
def _apply(graph: Any, method: str, state: Any, *inputs: jax.Array) -> Any:
    """Parameters are arguments: one program serves all layers of one shape."""
    return getattr(nnx.merge(graph, state), method)(*inputs)
