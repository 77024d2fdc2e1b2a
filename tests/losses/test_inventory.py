# SPDX-License-Identifier: Apache-2.0
"""What the compiled bank loss holds: nothing of the size of the bank, nothing of [B, N].

The optimized program is read operation by operation. Sizes are chosen so that a copied or gathered
bank and any array of logits, even one device's part of it, stand out; the plain loss has to fail
the same test, or the test would prove nothing.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from cir_jax.losses import in_bank, rows
from cir_jax.runtime import mesh as meshes
from tests.losses.problems import devices

ROWS, WIDTH, BATCH, BLOCK = 8192, 32, 16, 64
# Results of these are no new arrays.
PLUMBING = {"parameter", "tuple", "get-tuple-element", "while", "conditional", "bitcast", "call"}
OPERATION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\(")
ARRAY = re.compile(r"\b[a-z]+\d*\w*\[([\d,]*)\]")


def inventory(text):
    """(opcode, elements) of the largest result of every operation that allocates its result.

    Computations that a fusion calls are left out: what they name is never stored.
    """
    fused = set(re.findall(r"fusion\(.*?calls=%?([\w.\-]+)", text))
    found, skip = [], False
    for line in text.splitlines():
        head = re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and "->" in line:
            skip = head.group(1) in fused
        match = OPERATION.match(line)
        if match and not skip and match.group(3) not in PLUMBING:
            sizes = [
                math.prod(map(int, filter(None, s.split(",")))) for s in ARRAY.findall(match[2])
            ]
            found.append((match.group(3), max(sizes, default=0)))
    return found


def compiled(loss, mesh, per_row, dtype, excluded):
    """The text of value_and_grad of a step's loss: references looked up, queries composed."""

    def objective(shift, references, bank, reference_id, label, exclude):
        query = rows.lookup(references, reference_id, mesh) + shift
        query = query / jnp.linalg.norm(query, axis=-1, keepdims=True)
        return loss(query, bank, label, exclude if excluded else None).mean()

    along, batch = meshes.row_sharding(mesh), meshes.batch_sharding(mesh)

    def array(shape, kind, sharding):
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding)

    step = jax.jit(jax.value_and_grad(objective)).lower(
        array((BATCH, WIDTH), jnp.float32, batch),
        array((ROWS, WIDTH), jnp.float32, along),
        array((ROWS * per_row, WIDTH), dtype, along),
        array((BATCH,), jnp.int32, batch),
        array((BATCH,), jnp.int32, batch),
        array((BATCH, 2), jnp.int32, batch),
    )
    return step.compile().as_text()


def limits(mesh, per_row):
    """Elements of one device's part of the bank and of its part of [B, N]."""
    local = ROWS // mesh.size
    return min(local * per_row * WIDTH, BATCH * local)


@pytest.mark.parametrize(
    ("shape", "per_row", "dtype", "excluded"),
    [
        ((8, 1), 1, jnp.float32, False),
        ((2, 4), 1, jnp.float32, True),
        ((2, 4), 8, jnp.float32, True),
        ((8, 1), 1, jnp.bfloat16, False),
        ((1, 1), 1, jnp.bfloat16, False),
    ],
)
def test_no_array_of_bank_size(shape, per_row, dtype, excluded):
    mesh = devices(*shape)

    def blockwise(query, bank, label, exclude):
        return in_bank.bank_loss(
            *(query, bank, label, 0.02), mesh=mesh, per_row=per_row, rows=ROWS - 3,
            exclude=exclude, block=BLOCK,
        )  # fmt: skip

    found = inventory(compiled(blockwise, mesh, per_row, dtype, excluded))
    limit = limits(mesh, per_row)
    assert [x for x in found if x[1] >= limit] == []
    # The block's products are found, so the reading of the program is right.
    assert max(size for _, size in found) >= BATCH * BLOCK
    # Only [B, D] and smaller pieces travel.
    moved = [size for name, size in found if re.match("all-|reduce-scatter|collective", name)]
    assert moved and max(moved) <= BATCH * WIDTH


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_plain_loss_would_be_caught(shape):
    mesh = devices(*shape)

    def plain(query, bank, label, exclude):
        return in_bank.bank_loss_plain(query, bank[:, None], label, 0.02, exclude)

    found = inventory(compiled(plain, mesh, 1, jnp.float32, False))
    assert any(size >= limits(mesh, 1) for _, size in found)


def test_a_gathered_bank_would_be_caught():
    mesh = devices(8)

    def gathered(query, bank, label, exclude):
        whole = jax.lax.with_sharding_constraint(bank, meshes.replicated(mesh))
        return in_bank.bank_loss_plain(query, whole[:, None], label, 0.02, exclude)

    found = inventory(compiled(gathered, mesh, 1, jnp.float32, False))
    assert any(size >= ROWS * WIDTH for _, size in found)
