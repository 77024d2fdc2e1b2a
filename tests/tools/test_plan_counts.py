# SPDX-License-Identifier: Apache-2.0
"""What plans count: products, values that wait, and the collectives of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from tools.planning import analysis, compiled, formulas, hlo, machines, traced


def test_formulas_by_hand():
    """Two tokens of width 3 with an inner width of 12: 8 T w^2 + 4 T w i + 4 T^2 w."""
    assert formulas.layers(2, 3, 1) == 144 + 288 + 48
    assert formulas.layers(2, 3, 5, 6) == 5 * (144 + 144 + 48)
    # Two tokens of width 3 look at 7 of width 5: 4 T w^2, 4 T U w, and 4 U v w for keys and values.
    assert formulas.cross(2, 3, 7, 5) == 72 + 168 + 420
    assert formulas.layers(2, 3, 1, image=(7, 5)) == 480 + 660


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("clip_sum:fashioniq,stage=1", ("model.tower=ViT-B/32", "model.remat=true")),
        ("tgcir:fashioniq,stage=2", ()),
        ("blip:cirr,stage=1", ()),
        ("sprc:fashioniq,stage=1", ()),
    ],
)
def test_what_is_counted_in_a_trace_is_the_formula(spec, changes):
    machine = machines.find("2xH100")
    program = analysis.build(spec, machine, analysis.Options(changes=changes))
    jaxpr = traced.whole(program.update, program.arguments)
    counted = 2 * sum(traced.products(jaxpr, 2).values())
    assert counted == pytest.approx(formulas.step(program), rel=0.02)


def test_products_of_loops_and_convolutions():
    def loop(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)[0]

    def shapes(*sizes):
        return [jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes]

    found = traced.products(jax.make_jaxpr(loop)(*shapes((4, 8), (8, 8))).jaxpr, 1)
    assert found == {traced.FLOAT32: 7 * 2 * 4 * 8 * 8}

    def strided(x, k):
        out = jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO",
                                           "NHWC"))  # fmt: skip
        return out.sum()

    one = 2 * 2 * 8 * 8 * 5 * 9 * 3  # 8 x 8 places, 5 channels out of 9 x 3 values
    both = jax.make_jaxpr(jax.grad(strided, (0, 1)))(*shapes((2, 16, 16, 3), (3, 3, 3, 5))).jaxpr
    # Forward, and the gradients of image and kernel: each as many products, whatever the stride.
    assert traced.products(both, 1)[traced.FLOAT32] == 3 * one


def test_values_that_wait():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    chain = jax.make_jaxpr(lambda x: jnp.sin(jnp.exp(x) * 2).sum())(x).jaxpr
    assert traced.waiting(chain) <= 8  # joined with the sum: no array of a thousand

    w, rows = jax.ShapeDtypeStruct((50, 50), jnp.float32), jax.ShapeDtypeStruct((20, 50), "float32")

    def kept(length, wrap=lambda f: f):
        def layers(w, x):
            body = wrap(lambda c, _: (jnp.tanh(jnp.tanh(c @ w) @ w), None))
            return jax.lax.scan(body, x, None, length=length)[0].sum()

        return traced.waiting(jax.make_jaxpr(jax.grad(layers))(w, rows).jaxpr)

    one = 20 * 50 * 4  # what a round keeps: a few of these, and one if the rest is made again
    assert 10 * 3 * one <= kept(20) - kept(10) <= 10 * 8 * one
    assert kept(20, jax.checkpoint) - kept(10, jax.checkpoint) == 10 * one
    twice = lambda w, x: jax.lax.scan(lambda c, _: (c, c @ w @ w), x, None, length=10)
    # Ten results, beside both products of a round.
    assert traced.waiting(jax.make_jaxpr(twice)(w, rows).jaxpr) == (10 + 2) * one


def test_results_over_arguments_take_nothing():
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x: x @ x)(x).jaxpr
    assert (traced.waiting(jaxpr), traced.waiting(jaxpr, in_place=1)) == (4e6, 0)
    branch = lambda x, y: jax.lax.cond(y > 0, lambda x: x @ x, lambda x: x, x)
    jaxpr = jax.make_jaxpr(branch)(x, jax.ShapeDtypeStruct((), jnp.float32)).jaxpr
    assert (traced.waiting(jaxpr) >= 4e6, traced.waiting(jaxpr, in_place=1) <= 8) == (True, True)
    choice = lambda x, y: jnp.where(y > 0, x @ x, x)
    jaxpr = jax.make_jaxpr(choice)(x, jax.ShapeDtypeStruct((), jnp.float32)).jaxpr
    assert (traced.waiting(jaxpr) >= 4e6, traced.waiting(jaxpr, in_place=1) <= 8) == (True, True)


PROGRAM = """HloModule jit_update, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %inside = (bf16[8,4]{1,0:T(8,128)(2,1)}, f32[4]{0:T(128)S(1)}) all-reduce(%x, %y), GROUPS
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %x)
}

%offloaded (p: f32[6]) -> f32[6] {
  ROOT %there = f32[6]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

%beside.1 (p: f32[2]) -> (f32[2], f32[16]) {
  %first = f32[16]{0} all-gather(%p), CHAIN
  ROOT %handed = (f32[2], f32[16]) tuple(%p, %first)
}

%beside.2 (p: f32[2], q: f32[3]) -> (f32[2], f32[16], f32[3]) {
  %next = f32[16]{0:T(128)S(1)} all-gather(%p), CHAIN
  ROOT %also = (f32[2], f32[16], f32[3]) tuple(%p, %next, %q)
}

%condition (p: (s32[], bf16[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %a = (f32[2], f32[16]) fusion(%r), kind=kOutput, calls=%beside.1
  %b = (f32[2], f32[16], f32[3]) fusion(%r, %s), kind=kOutput, calls=%beside.2
  %c = (f32[2], f32[16], f32[3]) fusion(%r, %u), kind=kOutput, calls=%beside.2
  %loop = (s32[], bf16[8,4]) while(%t0), condition=%condition, body=%body
  %gather-start = (f32[4]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[4,2]<=[8]
  %far = ((f32[6]{0}), f32[6]{0}, u32[]{:S(8)}) call-start(%z), to_apply=%offloaded
  %gather-done = f32[8]{0} all-gather-done(%gather-start)
  %scattered = f32[3]{0} reduce-scatter(%z), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %all = f32[6]{0} all-reduce(%z), replica_groups={}, to_apply=%add
  %alone = f32[6]{0} all-reduce(%z), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
""".replace(
    "GROUPS", "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add"
).replace(
    "CHAIN", 'channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, frontend_attributes={chain_id="1"}'
)


def test_collectives_of_a_program():
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    found, loops = hlo.collectives(PROGRAM, mesh)
    assert not loops
    assert {(c.kind, c.axes, c.devices): (c.times, c.bytes) for c in found} == {
        ("all-reduce", "data", 4): (12, 12 * (8 * 4 * 2 + 4 * 4)),
        ("all-gather", "model", 2): (1, 8 * 4),
        ("all-gather", "data+model", 8): (2, 2 * 16 * 4),  # one in parts, one that ran twice
        ("reduce-scatter", "data", 4): (1, 4 * 3 * 4),
        ("all-reduce", "data+model", 8): (2, 2 * 6 * 4),
    }
    sent = {(c.kind, c.axes): c.sent for c in found}
    assert sent["all-reduce", "data+model"] == 2 * 7 / 8 * 48
    assert sent["reduce-scatter", "data"] == 3 / 4 * 48
    unknown = PROGRAM.replace("constant(12)", "parameter(0)")
    assert hlo.collectives(unknown, mesh)[1] == ["condition"]


def test_messages_of_a_compiler_that_refuses():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.75G of 15.75G hbm."
    assert compiled.over(said) == 16.75 * 2**30
    said = (
        "RESOURCE_EXHAUSTED: required for HLO temporaries (512.5M) exceeds available HBM (15.75G)"
    )
    assert compiled.over(said) == 512.5 * 2**20
    assert compiled.over("INVALID_ARGUMENT: Used 16.75G of 15.75G hbm.") == 0
