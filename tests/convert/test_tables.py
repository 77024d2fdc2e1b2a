# SPDX-License-Identifier: Apache-2.0
"""Rule tables: complete, strict both ways, and their own inverse."""

import jax
import numpy as np
import pytest

from cir_jax.convert import tables
from cir_jax.convert.containers.tensors import Tensor, of
from cir_jax.convert.tables import Piece
from cir_jax.errors import UserError
from cir_jax.weight_rules import CONVOLUTION, LINEAR, SAME, Ignored, Rule

RULES = [
    Rule("net.{layer}.fused", "blocks/query", LINEAR, (0, 2)),
    Rule("net.{layer}.fused", "blocks/key", LINEAR, (1, 2)),
    Rule("stage{s}.{b}.conv", "stage{s}/{b}/kernel", CONVOLUTION),
    Rule("scale", "scale"),
]
SHAPES = {
    "blocks/query": (3, 4, 2),
    "blocks/key": (3, 4, 2),
    "stage1/0/kernel": (3, 3, 5, 6),
    "stage2/1/kernel": (1, 1, 5, 6),
    "scale": (),
}
THEIRS = {
    "net.0.fused": (4, 4),
    "net.1.fused": (4, 4),
    "net.2.fused": (4, 4),
    "stage1.0.conv": (6, 5, 3, 3),
    "stage2.1.conv": (6, 5, 1, 1),
    "scale": (),
}
ABSTRACT = {p: jax.ShapeDtypeStruct(s, np.float32) for p, s in SHAPES.items()}
TABLE = tables.expand(RULES, ABSTRACT)


def random(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=s).astype(dtype) for n, s in THEIRS.items()}


def opened(arrays):
    return {n: of(x) for n, x in arrays.items()}


def test_the_list_of_tensors_follows_from_rules_and_shapes():
    assert tables.shapes(TABLE, ABSTRACT) == THEIRS


def test_every_value_has_its_place():
    arrays = random()
    leaves = tables.fill(TABLE, ABSTRACT, opened(arrays), "x")
    assert {p: x.shape for p, x in leaves.items()} == SHAPES
    for layer in range(3):
        fused = arrays[f"net.{layer}.fused"]
        np.testing.assert_array_equal(leaves["blocks/query"][layer], fused[:2].T)
        np.testing.assert_array_equal(leaves["blocks/key"][layer], fused[2:].T)
    conv = arrays["stage1.0.conv"]
    for o, i, h, w in ((0, 1, 2, 0), (5, 4, 0, 2)):
        assert leaves["stage1/0/kernel"][h, w, i, o] == conv[o, i, h, w]
    assert leaves["scale"] == arrays["scale"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_out_again_the_bytes_are_the_same(dtype):
    wide = opened(random())
    narrow = tables.tensors_of(
        TABLE, tables.fill(TABLE, ABSTRACT, wide, "x"), dict.fromkeys(TABLE, dtype)
    )
    leaves = tables.fill(TABLE, ABSTRACT, narrow, "x")
    back = tables.tensors_of(TABLE, leaves, dict.fromkeys(TABLE, dtype))
    for name, tensor in narrow.items():
        assert (back[name].dtype, back[name].shape) == (dtype, tensor.shape)
        assert back[name].read().flags.c_contiguous
        assert back[name].read().tobytes() == tensor.read().tobytes()


def test_one_tensor_at_a_time_is_in_memory():
    alive, most = set(), []

    class Watched(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def reader(values):
        def read():
            array = values.copy().view(Watched)
            alive.add(id(array))
            most.append(len(alive))
            return array

        return read

    tensors = {n: Tensor(x.shape, "float32", reader(x)) for n, x in random().items()}
    tables.fill(TABLE, ABSTRACT, tensors, "x")
    assert len(most) == len(THEIRS) and max(most) <= 2


def test_everything_wrong_is_said_at_once_and_nothing_is_read():
    def never():
        raise AssertionError("read")

    tensors = {n: Tensor(s, "float32", never) for n, s in THEIRS.items()}
    del tensors["scale"], tensors["stage2.1.conv"]
    tensors["net.1.fused"] = Tensor((4, 6), "float32", never)
    tensors["net.2.fused"] = Tensor((4, 4), "int8", never)
    tensors["stage1.0.conv"] = Tensor((3, 3, 5, 6), "float32", never)
    tensors["net.3.fused"] = Tensor((4, 4), "float32", never)
    tensors["steps"] = Tensor((), "int64", never)
    with pytest.raises(UserError) as error:
        tables.check(TABLE, ABSTRACT, tensors, (Ignored("steps", "a counter"),), "a.pt")
    assert str(error.value).startswith("a.pt does not hold this model, which has 6 tensors. ")
    for part in (
        "2 missing: stage2.1.conv [6, 5, 1, 1], scale []",
        "1 not part of the model: net.3.fused [4, 4]",
        "2 of another shape: net.1.fused is [4, 6], the model has [4, 4]",
        "stage1.0.conv is [3, 3, 5, 6], the model has [6, 5, 3, 3] (transposed?)",
        "1 no floating point: net.2.fused is int8",
    ):
        assert part in str(error.value)
    assert "steps" not in str(error.value)


def test_long_lists_are_cut():
    with pytest.raises(UserError, match=r"6 missing: .*scale \[\]\. Nothing"):
        tables.check(TABLE, ABSTRACT, {}, (), "a.pt")
    many = {f"extra{i}": of(np.zeros(1)) for i in range(9)}
    full = opened(random()) | many
    with pytest.raises(UserError, match=r"9 not part .*extra5 \[1\] and 3 more\."):
        tables.check(TABLE, ABSTRACT, full, (), "a.pt")


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_no_numbers(bad):
    arrays = random(np.float64)
    arrays["stage1.0.conv"][0, 0, 0, 0] = bad
    with pytest.raises(UserError, match=r"1 not finite: stage1.0.conv"):
        tables.fill(TABLE, ABSTRACT, opened(arrays), "a.pt")


@pytest.mark.parametrize(
    "rules, why",
    [
        (RULES[:-1], "no rule matches parameter scale"),
        ([*RULES, Rule("more", "nowhere")], "'nowhere' match no parameter"),
        ([*RULES[:1], *RULES[2:], Rule("k", "blocks/key")], "the parts of net.0.fused do not make"),
        ([Rule("c", "stage1/{b}/kernel"), *RULES], "stage1/0/kernel has 2 rules; keep one"),
    ],
)
def test_tables_that_are_not_whole(rules, why):
    with pytest.raises(UserError, match=why):
        tables.expand(rules, ABSTRACT)


def test_pieces_trace_without_values():
    for pieces in TABLE.values():
        for piece in pieces:
            theirs = jax.ShapeDtypeStruct(piece.their_shape(SHAPES[piece.path]), np.float32)
            ours = SHAPES[piece.path][piece.layer is not None :]
            assert jax.eval_shape(piece.ours, theirs).shape == ours


def test_three_axes_in_any_order():
    piece = Piece("x", None, (1, 2, 0), (0, 1))
    theirs = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert piece.ours(theirs).shape == (3, 4, 2) and piece.their_shape((3, 4, 2)) == (2, 3, 4)
    np.testing.assert_array_equal(piece.theirs(piece.ours(theirs)), theirs)
    assert SAME == ()
