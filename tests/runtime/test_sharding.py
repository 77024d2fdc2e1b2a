# SPDX-License-Identifier: Apache-2.0
"""Where parameters live: golden specs per config, bytes per device, rules, mesh, and what is said
of shapes that do not divide. To renew the golden files: python -m tests.runtime.test_sharding"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from cir_jax import config as configs
from cir_jax import contract, rules
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from cir_jax.training import step
from tests import runs
from tests.training.test_full_size_steps import abstract_batch
from tools.planning import hlo

SHAPE = re.compile(r"\b[a-z]+\d*\w*\[([\d,]*)\]")
GOLDEN = Path(__file__).parent / "golden"
TOWERS = {"clip_sum:fashioniq": "RN50x4", "clip_sum:emoji": "tiny-vit"}

# Every published model at its full size, and the largest tower of clip_sum.
FULL = {
    "clip_sum": ("clip_sum:fashioniq", "RN50x4"),
    "clip_sum-ViT-L-14": ("clip_sum:fashioniq", "ViT-L/14"),
    "clip_sum-SigLIP-So400m": ("clip_sum:fashioniq", "SigLIP-So400m/14-384"),
    "clip_sum-CoCa-L-14": ("clip_sum:fashioniq", "CoCa-ViT-L/14+gelu"),
    "clip_sum-EVA02-L-14": ("clip_sum:fashioniq", "EVA02-L/14+gelu"),
    "clip_sum-MetaCLIP2-H-14": ("clip_sum:fashioniq", "MetaCLIP2-ViT-H/14"),
    "clip_sum-TIPSv2-g-14": ("clip_sum:fashioniq", "TIPSv2-g/14"),
    "clip_weighted": ("clip_weighted:fashioniq", "RN50x4"),
    "clip_combiner": ("clip_combiner:fashioniq", "RN50x4"),
    "tgcir": ("tgcir:fashioniq", "ViT-B/16"),
    "blip": ("blip:fashioniq", "blip-base"),
    "sprc": ("sprc:fashioniq", "blip2-vit-g"),
    "gemma_embedding": ("gemma_embedding:fashioniq", "embeddinggemma-2"),
}


def full_size(name):
    spec, tower = FULL[name]
    return contract.build(configs.load(spec, [f"model.tower={tower}"]).model)


def splits(functions):
    """Path, with * for the number of a block, and shape -> specs: the rules' own, which are those
    of any mesh, and with fsdp on 8 x 1 and on 4 x 2 devices."""
    grids = [meshes.make(8, 1), meshes.make(4, 2)]
    places = [sharding.parameter_shardings(functions, mesh) for mesh in grids]
    assert all(places[0][path].spec == place.spec for path, place in places[1].items())
    places[1:] = [
        sharding.parameter_shardings(dataclasses.replace(functions, fsdp=mesh), mesh)
        for mesh in grids
    ]
    found = {}
    for path, abstract in functions.abstract.items():
        name = re.sub(r"/\d+/", "/*/", path)
        specs = [str(tuple(each[path].spec)) for each in places]
        assert found.setdefault(f"{name} {abstract.shape}", specs) == specs
    return {name: " | ".join(specs) for name, specs in found.items()}


def splits_file(name):
    return GOLDEN / "full_size" / f"{name}.json"


@pytest.mark.parametrize("name", FULL)
def test_every_parameter_of_every_model_is_split_as_it_was(name):
    assert splits(full_size(name)) == json.loads(splits_file(name).read_text())


def kept(functions, mesh, paths):
    """Bytes on a device of all parameters, and of gradients and both moments of those at `paths`;
    float32."""
    places = sharding.parameter_shardings(functions, mesh)
    size = {
        path: 4 * math.prod(places[path].shard_shape(x.shape))
        for path, x in functions.abstract.items()
    }
    return sum(size.values()) + 3 * sum(size[path] for path in paths)


def test_bytes_of_the_largest_model_on_sixteen_chips():
    functions, mesh = full_size("sprc"), AbstractMesh((16, 1), meshes.AXES)
    split = dataclasses.replace(functions, fsdp=mesh)
    # What trains in stage one, and all of it.
    some = [path for path, role in functions.roles.items() if role in ("index", "query")]
    for paths in (some, list(functions.abstract)):
        whole, part = kept(functions, mesh, paths), kept(split, mesh, paths)
        assert whole / 17 < part < whole / 15.5, (whole, part)
    assert kept(functions, mesh, list(functions.abstract)) > 16e9 > 8 * part


def test_what_fsdp_leaves_whole(monkeypatch):
    """What is small, what does not divide, and the layer axis of a scan."""
    functions = contract.build(runs.tiny("unused", "unused", model="clip_sum").model)

    def spec(path, devices):
        mesh = AbstractMesh((devices, 1), meshes.AXES)
        split = dataclasses.replace(functions, fsdp=mesh)
        return tuple(sharding.parameter_shardings(split, mesh)[path].spec)

    matrix, norm = "visual/blocks/mlp/fc1/kernel", "visual/blocks/norm1/scale"
    assert spec(matrix, 8) == (None, None, "model")  # of fewer than LEAST values
    monkeypatch.setattr(sharding, "LEAST", 1)
    assert spec(matrix, 8) == (None, None, "data") and spec(norm, 8) == (None, "data")
    assert spec(matrix, 7) == (None, None, "model") and spec("logit_scale", 8) == ()
    assert norm in functions.stacked and "text/proj" not in functions.stacked
    mesh = AbstractMesh((8, 1), meshes.AXES)
    assert sharding._over_data(PartitionSpec(), (16, 12), True, mesh) == PartitionSpec()
    assert tuple(sharding._over_data(PartitionSpec(), (16, 12), False, mesh)) == ("data", None)


def described(spec):
    functions = contract.build(configs.load(spec).model)
    places = sharding.parameter_shardings(functions, meshes.make(model=4))
    return {path: str(tuple(place.spec)) for path, place in sorted(places.items())}


def golden_file(spec):
    return GOLDEN / f"{spec.replace(':', '-')}.json"


@pytest.mark.parametrize("spec", TOWERS)
def test_every_parameter_lies_where_it_lay(spec):
    assert configs.load(spec).model.tower == TOWERS[spec]
    assert described(spec) == json.loads(golden_file(spec).read_text())


def bytes_per_device(tree, device):
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def test_bytes_per_device_fall_with_the_model_axis():
    config = runs.tiny("unused", "unused", model="clip_sum")
    functions = contract.build(config.model)
    params = functions.init(0)
    used = {}
    for model in (1, 4):
        mesh = meshes.make(model=model)
        places = sharding.parameter_shardings(functions, mesh)
        placed = sharding.place(params, places)
        optimizer = optim.build(config.optim, placed, 10)
        where = sharding.optimizer_shardings(optimizer, placed, places, mesh)
        state = jax.jit(optimizer.init, out_shardings=where)(placed)
        device = jax.devices()[3]
        used[model] = bytes_per_device(placed, device), bytes_per_device(state, device)
    for before, after in zip(used[1], used[4], strict=True):
        assert after < 0.27 * before


def test_a_step_keeps_the_shardings():
    config = runs.tiny("unused", "unused", model="cross_attention")
    mesh = meshes.make(model=4)
    functions = contract.build(config.model)
    stage = stages.load("one_in_batch").Stage.from_config(config, functions, mesh)
    places = sharding.parameter_shardings(functions, mesh)
    paths = stages.trainable(stage, functions)
    params = functions.init(0)
    trained = sharding.place({p: params[p] for p in paths}, places)
    optimizer = optim.build(config.optim, paths, 10)
    where = sharding.optimizer_shardings(optimizer, trained, places, mesh)
    state = jax.jit(optimizer.init, out_shardings=where)(trained)
    kept = jax.tree.map(lambda x: x.sharding, (trained, state))
    update = step.make(stage, functions, optimizer, 1, kept)
    pixels = np.zeros((8, 16, 16, 3), np.uint8)
    batch = {
        "text": np.full((8, 16), 7, np.int32), "reference_pixels": pixels,
        "target_pixels": pixels, "source_id": np.zeros(8, np.int32),
    }  # fmt: skip
    batch = jax.device_put(batch, meshes.batch_sharding(mesh))
    fixed = sharding.place({p: params[p] for p in params if p not in paths}, places)
    after, state, _ = update(trained, state, fixed, batch, None, jax.random.key(0))
    assert tuple(after["words"].sharding.spec) == ("model", None)
    moments = [x for x in jax.tree.leaves(state) if x.shape == after["words"].shape]
    assert moments and all(m.sharding == after["words"].sharding for m in moments)
    assert trained["words"].is_deleted() and not fixed["logit_scale"].is_deleted()


def test_rules_are_strict_both_ways():
    paths = ["visual/a", "text/b"]
    assert rules.match([("visual/.*", 1), (".*", 2)], paths) == {"visual/a": 1, "text/b": 2}
    with pytest.raises(UserError, match=r"no rule matches parameter text/b; add a rule"):
        rules.match([("visual/.*", 1)], paths)
    with pytest.raises(UserError, match=r"'imgae/\.\*' match no parameter \(a typo\?\)"):
        rules.match([("imgae/.*", 1), (".*", 2)], paths)


def test_mesh_and_batch_errors():
    with pytest.raises(
        UserError, match=r"does not use 8 devices; .* mesh.model to one of \[1, 2, 4"
    ):
        meshes.make(model=3)
    with pytest.raises(
        UserError, match=r"batch 100 does not divide over 8 devices .*use 96 or 104"
    ):
        meshes.check_batch(100, meshes.make())
    with pytest.raises(UserError, match=r"batch 3 does not divide over 8 devices .*use 8$"):
        meshes.check_batch(3, meshes.make())


def test_dimension_that_does_not_divide(monkeypatch):
    functions = contract.build(runs.tiny("unused", "unused").model)
    monkeypatch.setattr(
        functions.module, "sharding", lambda c: [(".*/kernel", ("model",)), (".*", ())]
    )
    with pytest.raises(UserError, match=r"head/kernel: 8 does not divide over 5 devices of axis"):
        sharding.parameter_shardings(functions, meshes.make(1, 5, jax.devices()[:5]))
    monkeypatch.setattr(functions.module, "sharding", lambda c: [(".*", (None, None, None))])
    with pytest.raises(UserError, match="has more entries than"):
        sharding.parameter_shardings(functions, meshes.make())


def test_optimizer_is_that_of_the_released_runs():
    config = configs.load("clip_sum:fashioniq,stage=2")
    params = {"a": np.float32(2.0)}
    ours = optim.build(config.optim, params, 100)
    theirs = optax.adamw(2e-5, 0.9, 0.999, 1e-7, weight_decay=0.01)
    grads = {"a": np.float32(0.5)}
    got, _ = ours.update(grads, ours.init(params), params)
    want, _ = theirs.update(grads, theirs.init(params), params)
    assert got == want


def test_optimizer_options_and_errors():
    config = configs.load("base", [
        "optim.multipliers=(('a',0.5),)", "optim.no_decay=('b',)", "optim.learning_rate=1.0",
        "optim.weight_decay=0.5", "optim.clip_norm=1.0",
    ])  # fmt: skip
    params = {"a": np.float32(2.0), "b": np.float32(2.0)}
    tx = optim.build(config.optim, params, 10)
    zero = {"a": np.float32(0.0), "b": np.float32(0.0)}
    updates, _ = tx.update(zero, tx.init(params), params)
    assert float(updates["a"]) == pytest.approx(-0.5) and float(updates["b"]) == 0
    for change, message in (
        ("optim.schedule=cosin", r"optim.schedule='cosin' is unknown.*Did you mean 'cosine'"),
        ("optim.warmup_steps=10", r"optim.warmup_steps=10 is not below the 10 steps"),
        ("optim.no_decay=('c',)", r"optim.no_decay: 'c' match no parameter"),
    ):
        with pytest.raises(UserError, match=message):
            optim.build(configs.load("base", [change]).optim, params, 10)


def test_schedules():
    config = configs.load("base", ["optim.warmup_steps=4", "optim.learning_rate=1.0"])
    assert [float(optim.schedule(config.optim, 8)(i)) for i in (0, 2, 4, 8)] == [0, 0.5, 1, 1]
    linear = configs.load("base", ["optim.schedule=linear", "optim.learning_rate=1.0"])
    assert [float(optim.schedule(linear.optim, 10)(i)) for i in (0, 5, 10)] == [1, 0.5, 0]


def abstract_update(config, functions, mesh):
    """The lowered step of a config whose batch is not there: shapes are enough."""
    stage = stages.load(config.stage).Stage.from_config(config, functions, mesh)
    places = sharding.parameter_shardings(functions, mesh)
    params = {p: described_array(x, places[p]) for p, x in functions.abstract.items()}
    paths = stages.trainable(stage, functions)
    trained = {p: params[p] for p in paths}
    optimizer = optim.build(config.optim, paths, 10)
    where = sharding.optimizer_shardings(optimizer, trained, places, mesh)
    state = jax.tree.map(described_array, jax.eval_shape(optimizer.init, trained), where)
    update = step.make(stage, functions, optimizer, 1, ({p: places[p] for p in paths}, where))
    batch = abstract_batch(stage, functions, config, mesh)
    fixed = {p: x for p, x in params.items() if p not in trained}
    return update.lower(trained, state, fixed, batch, None, jax.random.key(0))


def described_array(x, place):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def moved(text):
    """(kind, values) of every array that a collective of a compiled program gives."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    return {
        (kind, math.prod(map(int, filter(None, shape.split(",")))))
        for result, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
        for shape in SHAPE.findall(result)
    }


def test_with_fsdp_weights_are_gathered_layer_by_layer_and_rows_stay(monkeypatch):
    """The batch is so large that the states of its images are more values than any matrix."""
    monkeypatch.setattr(sharding, "LEAST", 64)
    config = runs.tiny("unused", "unused", "batch=4096", model="clip_sum")
    mesh = meshes.make()
    functions = contract.build(config.model, fsdp=mesh)
    table = max(x.size for x in functions.abstract.values())  # of the words
    layers = [
        x.size // (x.shape[0] if path in functions.stacked else 1)
        for path, x in functions.abstract.items()
        if x.size < table
    ]
    states = config.batch * functions.abstract["visual/position"].size
    assert states > 8 * max(layers)
    found = moved(abstract_update(config, functions, mesh).compile().as_text())
    assert ("all-gather", max(layers)) in found
    assert not [each for each in found if each[1] != table and each[1] > states / 4]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "full_size").mkdir(exist_ok=True)
    for one in FULL:
        lines = json.dumps(splits(full_size(one)), indent=0, sort_keys=True)
        splits_file(one).write_text(lines + "\n")
    for one in TOWERS:
        golden_file(one).write_text(json.dumps(described(one), indent=0, sort_keys=True) + "\n")


@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_gradients_of_a_lookup_cross_devices_as_rows(shape):
    """Not as a table; and they are those of the plain one, of ids that come twice too."""
    mesh = meshes.make(*shape, jax.devices()[:4])
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4096, 8)).astype(np.float32)
    ids = rng.integers(0, 40, (4, 16)).astype(np.int32)
    weights = rng.normal(size=(4, 16, 8)).astype(np.float32)
    rows, one = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    found, crossed = [], []
    for batch in (None, mesh):

        def loss(table, ids, weights, batch=batch):
            with sharding.split_over(None, batch):
                return jnp.sin(sharding.lookup(table, ids) * weights).sum()

        program = jax.jit(jax.grad(loss), in_shardings=(one, rows, rows), out_shardings=one)
        compiled = program.lower(table, ids, weights).compile()
        listed, unknown = hlo.collectives(compiled.as_text(), mesh)
        assert not unknown
        crossed.append(sum(c.bytes for c in listed))
        found.append(np.asarray(compiled(table, ids, weights)))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    assert crossed[0] >= table.nbytes and crossed[1] < table.nbytes / 16
    many = np.zeros((4, 512), np.int32)  # over a quarter of the table: reduced as it is
    with sharding.split_over(None, mesh):
        assert "custom_vjp" not in str(jax.make_jaxpr(sharding.lookup)(table, many))
        assert "custom_vjp" in str(jax.make_jaxpr(sharding.lookup)(table, ids))
