# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA) of any model: W stays as it is, and W + alpha / r * A B computes.

To a trainer the factors A [I, r] and B [r, O] of a matrix W [I, O] are parameters like others, with
the path of the matrix before their names; those of a scan have the leading axis of its layers. A
tower knows nothing of them: when the network is put together, `attach` puts a `LowRank` in the
place of each dense layer that has factors, which adds x A B to what the layer gives. The sum
W + A B could be made instead, and differentiated. That would be one line, but the gradient of each
whole W would then be computed on the way to those of A and B. Only a matrix that no dense layer
holds is treated so.

Source: Hu et al., "LoRA", arXiv 2106.09685. At the start B is zero, so that nothing changes.
"""

import math
import re
import zlib
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cir_jax.errors import UserError, nearest
from cir_jax.params import LORA_A, LORA_B, Params
from cir_jax.runtime.sharding import keep_rows
from cir_jax.towers.layers import Dense

# Names of groups of matrices, for `lora.modules`. Paths of matrices that groups and patterns are
# about end in "kernel" or "proj": a table of words or positions is meant only by its whole path.
GROUPS = {
    "attention": r"(.*/)?((\w*attention\w*|cross)/.*|(query|key|value|out)/)kernel",
    "mlp": r"(.*/)?\w*mlp\w*/(.+/)?kernel",
    "all": r"(.*/)?\w*(kernel|proj)",
}
# The same of what trains as it is, for `lora.trained`; "new" is what the model says in NEW.
NEW = "new"
WHOLE = {"biases": r"(.*/)?\w*bias", "norms": r"(.*/)?\w*norm\w*/(scale|bias)"}
_NAMED = re.compile(GROUPS["all"])
_LISTED = 12  # matrices that a message shows


@dataclass(frozen=True)
class Adapters:
    """What trains in place of the parameters of a model.

    Attributes:
      rank: r.
      alpha: the product of the factors is multiplied by alpha / r.
      shapes: path of each factor -> float32 jax.ShapeDtypeStruct.
      whole: paths of the parameters that train beside them, as they are.
    """

    rank: int
    alpha: float
    shapes: Params
    whole: frozenset[str]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.alpha / self.rank

    @property
    def matrices(self) -> list[str]:
        """Paths of the matrices that have factors."""
        return [path.removesuffix(LORA_A) for path in self.shapes if path.endswith(LORA_A)]

    def trained(self, paths: Iterable[str]) -> list[str]:
        """What trains in place of parameters with these paths."""
        return [*(path for path in paths if path in self.whole), *self.shapes]

    def start(self, seed: int) -> Params:
        """The factors at first: A of U(-1 / sqrt(I), 1 / sqrt(I)), as PEFT draws it, and B = 0."""

        def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
            if path.endswith(LORA_B):
                return np.zeros(shape, np.float32)
            bound = 1 / math.sqrt(shape[-2])
            # A generator of its own for each, so that what else has factors changes none of them.
            random = np.random.default_rng([seed, zlib.crc32(path.encode())])
            return random.uniform(-bound, bound, shape).astype(np.float32)

        return {path: draw(path, x.shape) for path, x in self.shapes.items()}

    def specs(self, matrices: Mapping[str, tuple]) -> dict[str, tuple]:
        """Path of a factor -> mesh axis or None per dimension.

        Args:
          matrices: the same of the matrices: A lies as the rows do, B as the columns do.
        """
        found = {}
        for path in self.matrices:
            axes = len(self.shapes[path + LORA_A].shape)
            *before, rows, columns = (*matrices[path], None, None, None)[:axes]
            found[path + LORA_A] = (*before, rows, None)
            found[path + LORA_B] = (*before, None, columns)
        return found

    def stacked(self, matrices: Container[str]) -> frozenset[str]:
        """Paths of the factors with a layer axis, of those of the matrices."""
        return frozenset(path for path in self.shapes if path[: -len(LORA_A)] in matrices)


def is_factor(path: str) -> bool:
    """Whether a path is that of a factor."""
    return path.endswith((LORA_A, LORA_B))


def choose(
    config: Any,
    abstract: Params,
    stacked: Iterable[str],
    trainable: Iterable[str],
    read: Iterable[str],
    new: Iterable[str] = (),
) -> Adapters:
    """What a config adapts of a model.

    Args:
      config: its section `lora`; `rank` is at least 1.
      abstract: path -> shape of every parameter of the model.
      stacked: paths of those whose first axis is the layers of a scan.
      trainable: paths of those that the stage would train.
      read: paths of those that the tree which trains is read for. A group is of those that would
        train; a regex also finds what the stage would leave frozen, such as the CLIP of a Combiner.
      new: regexes of paths that may start at random, see NEW in `cir_jax.contract`.

    Raises:
      UserError: a group or pattern matches nothing that the stage trains, what it could match is
        listed; or the rank is over that of a matrix.
    """
    layered, trains = set(stacked), [path for path in trainable if path in abstract]
    whole = _whole(config.trained, trains, list(new))
    sides = {path: abstract[path].shape[path in layered :] for path in read if path not in whole}
    matrices = [path for path, shape in sides.items() if len(shape) == 2]
    shapes: Params = {}
    for path in _chosen(config.modules, matrices, set(trains)):
        least = min(sides[path])
        if config.rank > least:
            raise UserError(
                f"lora.rank={config.rank} is over {least}, the rank of the matrix {path} "
                f"{list(sides[path])}; give at most {least}, or leave that matrix out of "
                "lora.modules"
            )
        *before, rows, columns = abstract[path].shape
        shapes[path + LORA_A] = jax.ShapeDtypeStruct((*before, rows, config.rank), jnp.float32)
        shapes[path + LORA_B] = jax.ShapeDtypeStruct((*before, config.rank, columns), jnp.float32)
    return Adapters(config.rank, config.alpha, shapes, whole)


def _chosen(modules: Iterable[str], matrices: list[str], trains: set[str]) -> list[str]:
    """The matrices that groups and patterns name, in the order of the model."""
    named = [path for path in matrices if _NAMED.fullmatch(path)]
    chosen: set[str] = set()
    for text in modules:
        regex = re.compile(GROUPS.get(text, text))
        found = [p for p in named if regex.fullmatch(p) and (p in trains or text not in GROUPS)]
        found += [text] if text in matrices else []
        if not found:
            raise _matches_nothing("lora.modules", text, GROUPS, named)
        chosen.update(found)
    if not chosen:
        raise UserError(
            f"lora.modules={tuple(modules)} names no matrix; give one or more of "
            f"{', '.join(GROUPS)}, or regexes of paths"
        )
    return [path for path in matrices if path in chosen]


def _whole(names: Iterable[str], paths: list[str], new: list[str]) -> frozenset[str]:
    """The parameters that train as they are."""
    chosen: set[str] = set()
    for text in names:
        regexes = new if text == NEW else [WHOLE.get(text, text)]
        found = [p for p in paths if any(re.fullmatch(regex, p) for regex in regexes)]
        if not found and text != NEW:  # most models have nothing that is new
            raise _matches_nothing("lora.trained", text, (NEW, *WHOLE), paths)
        chosen.update(found)
    return frozenset(chosen)


def _matches_nothing(key: str, text: str, groups: Iterable[str], paths: list[str]) -> UserError:
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    there = ", ".join(paths[:_LISTED]) or "none"
    hint = "" if text in groups else nearest(text, [*groups, *paths])
    return UserError(
        f"{key}: {text!r} matches nothing here. The groups {', '.join(groups)} are of what this "
        f"stage would train; a regex must match a whole path, and there are: {there}{more}.{hint}"
    )


def merged(params: Mapping[str, Any], scale: float) -> Params:
    """The parameters without factors that compute the same: each W is W + scale * A B.

    Arrays of numpy stay such.
    """
    found = {path: x for path, x in params.items() if not is_factor(path)}
    for path in params:
        if path.endswith(LORA_A):
            matrix = path.removesuffix(LORA_A)
            product = params[path] @ params[matrix + LORA_B]
            found[matrix] = found[matrix] + np.float32(scale) * product
    return found


class LowRank(nnx.Module):
    """A dense layer that computes with W + scale * A B, [..., I] -> [..., O].

    Args:
      dense: the layer, of W.
      a: [I, r].
      b: [r, O].
      scale: alpha / r.
    """

    def __init__(self, dense: nnx.Linear, a: jax.Array, b: jax.Array, scale: float):
        self.dense = dense
        self.a, self.b = nnx.Param(a), nnx.Param(b)
        self.scale = scale

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        y = self.dense(x, out_sharding)
        few = keep_rows(keep_rows(x).astype(y.dtype) @ self.a[...].astype(y.dtype))
        return y + keep_rows((self.scale * few) @ self.b[...].astype(y.dtype))

    @property
    def kernel(self) -> jax.Array:
        """W + scale * A B, for code that does not call the layer but reads it."""
        return self.dense.kernel[...] + self.scale * (self.a[...] @ self.b[...])

    @property
    def bias(self) -> Any:
        """That of the layer."""
        return self.dense.bias


def attach(model: nnx.Module, keys: Mapping[str, tuple], params: Params, scale: float) -> None:
    """Makes a network compute with the factors in `params`; without any, nothing changes.

    Args:
      model: as `nnx.merge` gave it, with the parameters that are no factors.
      keys: path of a parameter -> its keys in the state of the network.
      params: path -> array.
      scale: alpha / r.
    """
    layers: dict[int, LowRank] = {}
    for path in params:
        if not path.endswith(LORA_A):
            continue
        matrix = path.removesuffix(LORA_A)
        a, b = params[path], params[matrix + LORA_B]
        owner = _part(model, keys[matrix][:-1])
        # A class of somebody else's may use its kernel in any way.
        if type(owner) in (Dense, nnx.Linear) and keys[matrix][-1] == "kernel":
            layers[id(owner)] = LowRank(owner, a, b, scale)
        else:
            leaf = _part(model, keys[matrix])
            leaf.set_value(leaf[...] + scale * (a @ b))
    for _, part in list(nnx.iter_graph(model)) if layers else ():
        if isinstance(part, nnx.Module):
            for name, value in list(vars(part).items()):
                if id(value) in layers:  # a layer may have several names
                    setattr(part, name, layers[id(value)])


def _part(model: Any, keys: tuple) -> Any:
    for key in keys:  # a list of flax keeps its elements as attributes, too
        model = getattr(model, str(key))
    return model
