# SPDX-License-Identifier: Apache-2.0
"""A `Model` from weights and what is said of them: `cir_jax.load`, and the model of an index."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from cir_jax import config as configs
from cir_jax import contract, trust, weights
from cir_jax.convert import remote_code
from cir_jax.errors import UserError
from cir_jax.retrieval import arguments, image_loading
from cir_jax.retrieval import load as loaders
from cir_jax.retrieval.model import Model, Source
from cir_jax.runtime import mesh as meshes

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Arguments:
    """What is said of weights beside their places, see `cir_jax.load`."""

    model: str | None = None
    tower: str | None = None
    pad: str | None = None
    dtype: str | None = None
    loading: str | None = None
    trust_code: bool = False
    ignore_remote_code: bool = False


def load(
    path: StrPath | Sequence[StrPath],
    said: Arguments,
    device: str | jax.Device | Mesh | None = None,
) -> Model:
    """A model from a run or weights.

    Args:
      path: see `cir_jax.load`.
      said: what the weights do not say.
      device: see `cir_jax.load`.

    Raises:
      UserError: see `cir_jax.load`.
    """
    mesh = mesh_of(device)
    paths = [path] if isinstance(path, str | os.PathLike) else path
    named = [str(Path(place).expanduser()) for place in paths]
    with trust.trusting(said.trust_code), remote_code.ignoring(said.ignore_remote_code):
        return _load(named, said, mesh)


def _load(named: list[str], said: Arguments, mesh: Mesh) -> Model:
    parts, changes = arguments.read(named, said.model, said.tower, said.pad, said.loading)
    if said.dtype is not None:
        changes.append(f"model.dtype={said.dtype}")
    config, _ = loaders.config_of(named, said.model or "", overrides=changes)
    image_loading.say_if_other(config, ",".join(named))
    if config.model.dtype == "auto":
        cpu = mesh.devices.flat[0].platform == "cpu"
        config = configs.override(config, [f"model.dtype={'float32' if cpu else 'bfloat16'}"])
    if mesh.devices.flat[0].platform != jax.default_backend():  # on which "auto" is decided
        config = configs.override(config, ["model.attention=xla"])
    functions = contract.build(config.model)
    preprocess = loaders.preprocessing(config, functions)
    arguments.check(parts, functions, said.pad)
    loaded = weights.load(",".join(named), functions)
    index, query = loaders.placed(loaded, functions, mesh)
    return Model(
        config,
        functions,
        index,
        query,
        mesh,
        preprocess=preprocess,
        record=loaded.record,
        source=Source(tuple(named), said.model, said.tower, said.pad, said.loading),
    )


def mesh_of(device: str | jax.Device | Mesh | None) -> Mesh:
    """The mesh that a device, a platform, a mesh or nothing means.

    Raises:
      UserError: it is none of these, or there is no such platform.
    """
    if isinstance(device, Mesh):
        if device.axis_names != meshes.AXES:
            raise UserError(
                f"device is a mesh with the axes {device.axis_names}, not {meshes.AXES}; make it "
                "with cir_jax.runtime.mesh.make(devices=[...])"
            )
        return device
    if isinstance(device, str):
        try:
            return meshes.make(devices=jax.devices(device))
        except RuntimeError as error:
            raise UserError(
                f"device={device!r}: {error}; None is all of {jax.devices()[:4]}"
            ) from None
    if device is None or isinstance(device, jax.Device):
        return meshes.make(devices=None if device is None else [device])
    raise UserError(
        f"device is a {type(device).__name__}; give 'cpu', a jax.Device, a mesh or None"
    )
