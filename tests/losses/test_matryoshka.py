# SPDX-License-Identifier: Apache-2.0
"""The loss of vectors that may be cut is the sum of the losses at each width, in both stages."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.losses import in_bank, matryoshka, sampled
from cir_jax.towers.layers import unit
from tests.losses import problems
from tests.training import test_laws

WIDTHS = (16, 8, 3)


def test_a_bank_is_cut_block_by_block_as_it_would_be_whole():
    query, bank, label, exclude, rows = problems.problem(per_row=2)
    mesh = problems.devices(2)
    placed = problems.place(bank, mesh)
    others = np.stack([np.setdiff1d(np.arange(rows), [one]) for one in np.asarray(label)])
    options = {"mesh": mesh, "per_row": 2}

    def each(query, loss):
        found = [loss(matryoshka.cut(query, width), width).mean() for width in WIDTHS]
        return sum(found), found

    def plain(query, width):
        whole = unit(bank[..., :width])
        return in_bank.bank_loss_plain(query, whole, label, 0.1, exclude, rows)

    def blocks(query, width):
        some = {"rows": rows, "exclude": exclude, "block": 8, "width": width}
        return in_bank.bank_loss(query, placed, label, 0.1, **options, **some)

    def drawn(query, width):
        some = {"width": width, **options}
        return sampled.sampled_bank_loss(query, placed, label, others, 0.1, **some)

    def all_of_them(query, width):
        return in_bank.bank_loss_plain(query, unit(bank[..., :width]), label, 0.1, None, rows)

    for loss, oracle in ((blocks, plain), (drawn, all_of_them)):
        gradient = [
            jax.jit(jax.value_and_grad(lambda x, f=f: each(x, f), has_aux=True))
            for f in (oracle, loss)
        ]
        (want, got) = (f(query) for f in gradient)
        problems.assert_close(want, got)
        assert len({round(float(x), 3) for x in want[0][1]}) == 3


@pytest.mark.parametrize("stage", ["one_in_batch", "two_bank"])
def test_the_loss_of_a_stage_is_the_sum_over_its_widths(stage):
    functions, made, mesh, params, batch, bank, _ = test_laws.prepared(
        "cross_attention", stage, (2, 1), "loss.matryoshka=2,8,4"
    )
    assert made.matryoshka == (8, 4, 2)
    plain, key = dataclasses.replace(made, matryoshka=()), jax.random.key(0)

    def losses(params, batch, bank):
        alone = []
        for width in (8, 4, 2):
            # A model that makes vectors of this width itself, and a bank of them.
            short = SimpleNamespace(
                reference_and_target=lambda *given, w=width: _short(functions, given, w),
                compose=lambda *given, w=width: unit(functions.compose(*given)[:, :w]),
                reference_shape=functions.reference_shape,
                target_shape=(1, width),
            )
            held = dataclasses.replace(bank, targets=unit(bank.targets[:, :width]))
            alone.append(plain.loss(short, params, params, batch, held, key))
        return made.loss(functions, params, params, batch, bank, key), alone

    with_bank = functools.partial(losses, bank=bank)
    (total, said), alone = jax.jit(with_bank)(params, test_laws.placed(batch, mesh))
    np.testing.assert_allclose(total, sum(x for x, _ in alone), rtol=1e-5)
    for width, (one, others) in zip((8, 4, 2), alone, strict=True):
        assert float(said[f"loss_at_{width}"]) == pytest.approx(float(one.mean()), 1e-5)
        assert not any(name.startswith("loss_at") for name in others)


def _short(functions, given, width):
    reference, target = functions.reference_and_target(*given)
    return reference, unit(target[..., :width])


@pytest.mark.parametrize("widths", ["8,4,4", "4,2", "16,8"])
def test_widths_that_no_vector_has(widths):
    for stage in ("one_in_batch", "two_bank"):
        with pytest.raises(UserError, match=r"the widest be that of the model's vectors, 8; write"):
            test_laws.prepared("cross_attention", stage, (1, 1), f"loss.matryoshka={widths}")
