# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, by which names, and which versions of it are read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from cir_jax import weights
from cir_jax.errors import UserError
from cir_jax.runtime import checkpoint, checksums, commits
from cir_jax.runtime import mesh as meshes

TRAINED = {"text/norm/scale": np.arange(3, dtype=np.float32), "text/position": np.ones((2, 3))}
FIXED = {"visual/patches/kernel": np.full((2, 2), 7, np.float32)}


def tree_of(fixed=FIXED):
    """A tree whose moments are all different."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    trained = {path: jnp.asarray(x, jnp.float32) for path, x in TRAINED.items()}
    state = optimizer.init(trained)
    for scale in (1.0, 3.0):
        gradient = {path: scale * (x + 1) for path, x in trained.items()}
        _, state = optimizer.update(gradient, state, trained)
    return {"fixed": fixed, "trained": trained, "optimizer": state}


def abstract_of(tree):
    place = meshes.replicated(meshes.make())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def saved(folder, tree, record):
    kept = checkpoint.Checkpoints(folder)
    kept.save(5, tree, record)
    kept.close()
    return kept


def check_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_arrays_have_their_own_names_on_disk(tmp_path):
    """Orbax alone, which knows nothing of this project, gives every array by its name."""
    tree = tree_of()
    saved(tmp_path, tree, {"step": 5})
    with ocp.PyTreeCheckpointer() as reader:
        arrays = flatten_dict(reader.restore(tmp_path / "5" / "state"), sep="/")
    (_, (adam, *_)) = tree["optimizer"]
    assert sorted(arrays) == [
        "fixed/visual/patches/kernel",
        "optimizer/1/0/count",
        "optimizer/1/0/mu/text/norm/scale",
        "optimizer/1/0/mu/text/position",
        "optimizer/1/0/nu/text/norm/scale",
        "optimizer/1/0/nu/text/position",
        "trained/text/norm/scale",
        "trained/text/position",
    ]
    np.testing.assert_array_equal(
        arrays["optimizer/1/0/nu/text/position"], adam.nu["text/position"]
    )
    np.testing.assert_array_equal(arrays["trained/text/position"], tree["trained"]["text/position"])


@pytest.mark.parametrize("fixed", [FIXED, {}], ids=["some fixed", "none fixed"])
def test_a_tree_comes_back(fixed, tmp_path):
    tree = tree_of(fixed)
    kept = saved(tmp_path, tree, {"step": 5})
    step, got, record = checkpoint.restore_newest(kept, abstract_of(tree), lambda record: None)
    assert (step, record) == (5, {"version": checkpoint.VERSION, "step": 5})
    check_equal(got, tree)


def write_version_1(folder, tree):
    """As version 0.1.0 wrote a step; tests/legacy has whole runs of it."""
    state = {
        part: {path.replace("/", ":"): x for path, x in tree[part].items()}
        for part in ("fixed", "trained")
    }
    leaves = jax.tree.leaves(tree["optimizer"])
    state["optimizer"] = {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}
    arguments = ocp.args.Composite(
        state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave({"step": 5})
    )
    with ocp.CheckpointManager(folder) as manager:
        manager.save(5, args=arguments)


@pytest.mark.parametrize("fixed", [FIXED, {}], ids=["some fixed", "none fixed"])
def test_version_1_comes_back(fixed, tmp_path):
    tree = tree_of(fixed)
    write_version_1(tmp_path, tree)
    kept = checkpoint.Checkpoints(tmp_path)
    _, got, record = checkpoint.restore_newest(kept, abstract_of(tree), lambda record: None)
    assert "version" not in record
    check_equal(got, tree)


@pytest.mark.parametrize("version", [1, 2])
def test_a_part_of_a_tree_comes_back(version, tmp_path):
    tree = tree_of()
    if version == 1:
        write_version_1(tmp_path, tree)
    else:
        saved(tmp_path, tree, {})
    wanted = {
        "fixed": tree["fixed"],
        "trained": {"text/position": tree["trained"]["text/position"]},
    }
    kept = checkpoint.Checkpoints(tmp_path)
    check_equal(kept.restore(5, abstract_of(wanted), partial=True), wanted)
    with pytest.raises(ValueError, match="do not match"):
        kept.restore(5, abstract_of(wanted))


def test_a_newer_version_is_refused(tmp_path):
    tree = tree_of()
    last = tmp_path / checkpoint.LAST
    kept = saved(last, tree, {"step": 5})
    record = last / "5" / "record" / "metadata"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"version": 4}))
    checksums.write(last / "5", {}, (commits.COMMITTED,))
    message = (
        r"step 5 in .*last is of version 4 of its format, and this code reads versions 1 to 3; "
        r"update cir_jax, or use the version that wrote it"
    )
    for read in (
        lambda: checkpoint.restore_newest(kept, abstract_of(tree), lambda record: None),
        lambda: weights.config_of(tmp_path),
    ):
        with pytest.raises(UserError, match=message):
            read()
    assert kept.steps() == [5]  # it is not damaged, and stays where it is
