# SPDX-License-Identifier: Apache-2.0
"""Stage one's ablations: types of negatives, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cir_jax.errors import UserError
from cir_jax.training import stage as stages
from tests.training.test_laws import placed, prepared, without_dropout

TAU = 0.1


def crossed_losses(functions, params, batch):
    """The loss of each type, from every reference with every text; plain numpy."""
    size = len(batch["text"])
    targets = np.asarray(functions.target(params, batch["target_pixels"]), np.float64)

    def queries(text_of):
        text = batch["text"][text_of]
        reference = functions.reference(params, batch["reference_pixels"], text)
        return np.asarray(functions.compose(params, reference, text), np.float64)

    # own[i, j]: reference i with text j.
    own = np.stack([queries(np.roll(np.arange(size), -s)) for s in range(size)])
    pair = np.empty((size, size, own.shape[-1]))
    for s in range(size):
        for i in range(size):
            pair[i, (i + s) % size] = own[s, i]
    query = pair[np.arange(size), np.arange(size)]

    def score(q, t):
        return (t @ q).max()

    def cross_entropy(logit):
        table = np.asarray([[logit(i, j) for j in range(size)] for i in range(size)]) / TAU
        return np.log(np.exp(table).sum(axis=1)) - np.diag(table)

    return {
        "target": cross_entropy(lambda i, j: score(query[i], targets[j])),
        "query": cross_entropy(lambda i, j: score(query[j], targets[i])),
        "text": cross_entropy(lambda i, j: score(pair[i, j], targets[i])),
        "reference": cross_entropy(lambda i, j: score(pair[j, i], targets[i])),
    }


@pytest.mark.parametrize("model", ["clip_sum", "cross_attention", "sprc_shaped"])
def test_each_type_replaces_what_it_says(model):
    change = "loss.negative_types=reference,target,text,query"
    functions, stage, mesh, params, batch, _, _ = prepared(model, "one_in_batch", (2, 1), change)
    functions = without_dropout(functions)
    want = crossed_losses(functions, params, batch)
    batch = placed(batch, mesh)

    def loss(p):
        losses, metrics = stage.loss(functions, p, p, batch, None, jax.random.key(0))
        return losses.mean(), (losses, metrics)

    (_, (losses, metrics)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(losses, sum(want.values()) / 4, rtol=2e-4)
    for name, each in want.items():
        assert float(metrics[f"{name}_negatives"]) == pytest.approx(each.mean(), rel=2e-4)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert any(np.any(g) for g in gradient.values())


def test_target_alone_is_the_stage_and_an_order_does_not_matter():
    functions, plain, mesh, params, batch, _, _ = prepared("clip_sum", "one_in_batch")
    first = prepared("clip_sum", "one_in_batch", (1, 1), "loss.negative_types=query,target")[1]
    second = prepared("clip_sum", "one_in_batch", (1, 1), "loss.negative_types=target,query")[1]
    assert plain.negative_types == ("target",) and first == second
    batch = placed(batch, mesh)
    want = plain.loss(functions, params, params, batch, None, jax.random.key(0))[0]
    got = first.loss(functions, params, params, batch, None, jax.random.key(0))[1]
    assert float(got["target_negatives"]) == pytest.approx(float(jnp.mean(want)), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss.negative_types=targets", r"'targets',\) is unknown; use target, query, text or ref"),
        ("loss.negative_types=()", r"must name one or more of"),
        ("loss.negative_types=text,text", r"each once"),
        ("loss.auxiliary=align:1", r"model 'clip_sum' has no loss 'align', nor any other"),
    ],
)
def test_wrong_words(change, message):
    with pytest.raises(UserError, match=message):
        prepared("clip_sum", "one_in_batch", (1, 1), change)


def test_crossed_types_do_not_go_with_gradient_caching():
    changes = ("loss.negative_types=text", "loss.chunk=4")
    with pytest.raises(UserError, match=r"every reference with every text.*loss.chunk=4; leave"):
        prepared("clip_sum", "one_in_batch", (1, 1), *changes)


@pytest.mark.parametrize("stage", ["two_bank", "zero_image_text"])
def test_other_stages_refuse_the_keys_of_this_one(stage):
    for change in ("loss.auxiliary=align:1", "loss.negative_types=query"):
        message = f"read by stage=one_in_batch, but this config has stage={stage}"
        with pytest.raises(UserError, match=message):
            prepared("clip_sum", stage, (1, 1), change, f"stage={stage}")


def test_what_no_loss_reads_does_not_train():
    functions, plain, *_ = prepared("tgcir", "one_in_batch")
    change = "loss.auxiliary=teacher_ranking:1"
    taught = prepared("tgcir", "one_in_batch", (1, 1), change)[1]
    teacher = {p for p in functions.abstract if p.startswith(("teacher_", "token_weights"))}
    assert teacher and not teacher & set(stages.trainable(plain, functions))
    assert teacher < set(stages.trainable(taught, functions))
