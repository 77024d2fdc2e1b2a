# SPDX-License-Identifier: Apache-2.0
"""Where parameters live: golden specs per config, bytes per device, rules, mesh, and what is said
of shapes that do not divide. To renew the golden files: python -m tests.runtime.test_sharding"""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from cir_jax import config as configs
from cir_jax import contract, rules
from cir_jax.errors import UserError
from cir_jax.runtime import mesh as meshes
from cir_jax.runtime import optim, sharding
from cir_jax.training import stage as stages
from cir_jax.training import step
from tests import runs

GOLDEN = Path(__file__).parent / "golden"
TOWERS = {"clip_sum:fashioniq": "RN50x4", "clip_sum:emoji": "tiny-vit"}


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


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for one in TOWERS:
        golden_file(one).write_text(json.dumps(described(one), indent=0, sort_keys=True) + "\n")
