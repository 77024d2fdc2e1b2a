# SPDX-License-Identifier: Apache-2.0
"""What a rule of weights is: which tensor of a PyTorch model is which leaf of ours.

    Rule("transformer.resblocks.{layer}.mlp.c_fc.weight", "text/blocks/mlp/fc1/kernel", LINEAR)

`{layer}` and the like stand for numbers. Encoders and models state their rules in these words;
`cir_jax.convert.tables` reads and writes by them.
"""

from dataclasses import dataclass

# Axes of PyTorch's array in the order of ours.
SAME: tuple[int, ...] = ()
LINEAR = (1, 0)  # [O, I] -> [I, O]
CONVOLUTION = (2, 3, 1, 0)  # [O, I, H, W] -> [H, W, I, O]


@dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Attributes:
      source: its name, with fields such as `{layer}` for numbers.
      path: path of our leaf; fields that `source` has too.
      axes: SAME, LINEAR, CONVOLUTION, or any order of axes.
      part: (n, m): the leaf is the n-th of m equal pieces of the tensor, along its first axis.
      ones: axes of length 1 of the tensor that our leaf does not have; `axes` counts without them.
      numbers: (first, step) of the numbers in names that are layers of one leaf, where layers of
        two kinds alternate.
    """

    source: str
    path: str
    axes: tuple[int, ...] = SAME
    part: tuple[int, int] = (0, 1)
    ones: tuple[int, ...] = ()
    numbers: tuple[int, int] = (0, 1)


def dense(source: str, path: str, numbers: tuple[int, int] = (0, 1)) -> list[Rule]:
    """The rules of PyTorch's linear layer and ours; `numbers` as of `Rule`."""
    return [
        Rule(f"{source}.weight", f"{path}/kernel", LINEAR, numbers=numbers),
        Rule(f"{source}.bias", f"{path}/bias", numbers=numbers),
    ]


def norm(source: str, path: str, numbers: tuple[int, int] = (0, 1)) -> list[Rule]:
    """The same of a norm with scale and bias."""
    return [
        Rule(f"{source}.weight", f"{path}/scale", numbers=numbers),
        Rule(f"{source}.bias", f"{path}/bias", numbers=numbers),
    ]


@dataclass(frozen=True)
class Ignored:
    """Tensors that a file may hold and a model does not need: a regex of the name, and why."""

    regex: str
    reason: str
