# SPDX-License-Identifier: Apache-2.0
"""What a traced program costs by its shapes: products, and the memory of values that wait for use.

Both walk the jaxpr with its inner programs. A loop's body counts as often as it runs.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

BFLOAT16, FLOAT32, HIGHEST = "bfloat16", "float32", "float32 at highest precision"
# Values of these are computed again where they are read, or are other views of the same bytes: a
# compiler joins them with what reads them.
_JOINED = frozenset(
    (
        "abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos div eq erf "
        "erf_inv erfc exp exp2 expand_dims expm1 floor ge gt integer_pow iota is_finite le log "
        "log1p logistic lt max min mul ne neg not optimization_barrier or pad pow reduce_precision "
        "rem reshape rev round rsqrt select_n sign sin slice sqrt square squeeze stop_gradient sub "
        "tanh transpose xor"
    ).split()
)
_SMALL = 16  # an input that is this much smaller than the largest one is not counted beside it


def whole(update: jax.stages.Wrapped, arguments: tuple[Any, ...]) -> core.Jaxpr:
    """The program of a step, without what no result needs; all arguments are there."""
    jaxpr = update.trace(*arguments).jaxpr.jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def reads(jaxpr: core.Jaxpr) -> list[bool]:
    """Of each argument, whether the program reads it: a compiled program has no others."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]


def products(jaxpr: core.Jaxpr, devices: int) -> dict[str, float]:
    """FLOP of one device: type of the product -> number. Additions and multiplications count apart.

    Args:
      jaxpr: of a step on global arrays.
      devices: over which the work is split; what stands in a `shard_map` is one device's already.
    """
    found: dict[str, float] = defaultdict(float)
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            found[_kind(equation)] += _dot(equation) / devices
        elif name == "conv_general_dilated":
            found[_kind(equation)] += _convolution(equation) / devices
        split = 1 if name == "shard_map" else devices
        parts = [(products(inner, split), times) for inner, times in _inner(equation)]
        if name == "cond":  # one of the branches runs: the longest, for what is known here
            parts = [max(parts, key=lambda part: sum(part[0].values()))]
        for part, times in parts:
            for kind, flop in part.items():
                found[kind] += times * flop
    return dict(found)


def _kind(equation: Any) -> str:
    precision = equation.params.get("precision")
    both = precision if isinstance(precision, tuple) else (precision,)
    if all(x.aval.dtype == "bfloat16" for x in equation.invars):
        return BFLOAT16
    return HIGHEST if any(str(p).upper().endswith("HIGHEST") for p in both) else FLOAT32


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    inner = math.prod(shape[i] for i in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner


def _convolution(equation: Any) -> float:
    """Zeros that a stride of the forward pass puts between values are not multiplied."""
    kernel, dims = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    inputs = kernel[dims.rhs_spec[1]]
    side = math.prod(kernel[i] for i in dims.rhs_spec[2:])
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * inputs * side / zeros


def _inner(equation: Any) -> Iterator[tuple[core.Jaxpr, float]]:
    """The programs inside of an instruction, and how often each runs if it does."""
    parameters = equation.params
    times: float = parameters["length"] if equation.primitive.name == "scan" else 1
    for value in parameters.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one, times


def waiting(jaxpr: core.Jaxpr, in_place: int = 0) -> float:
    """Bytes of the values that wait for their use at the worst moment, beside the arguments.

    An estimate of the temporaries of the compiled program. Values that a compiler joins with their
    only large input are not counted, but keep that input alive; what crosses the border of a loop
    is counted in the type it has there. Padding of layouts and room for copies are not known here.

    Args:
      jaxpr: a program.
      in_place: so many results, from the first on, are written over arguments.
    """
    written = _written(jaxpr, in_place)
    given = {*jaxpr.invars, *jaxpr.constvars, *written}  # someone else's memory
    root = _roots(jaxpr)
    last: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        last |= dict.fromkeys((root.get(v, v) for v in _variables(equation.invars)), number)
    results = _variables(jaxpr.outvars)
    last |= dict.fromkeys((root.get(v, v) for v in results), len(jaxpr.eqns))
    alive = highest = 0.0
    for number, equation in enumerate(jaxpr.eqns):
        own = [v for v in equation.outvars if v not in root and v not in given]
        made = sum(map(_size, own))
        # A branch writes its results where those of the program belong.
        over = len(equation.outvars) if all(v in given for v in equation.outvars) else 0
        inside = max((waiting(inner, over) for inner, _ in _inner(equation)), default=0.0)
        # A loop holds what it makes beside one run of its body; else both are the same values.
        loop = equation.primitive.name in ("scan", "while")
        highest = max(highest, alive + (made + inside if loop else max(made, inside)))
        alive += made - sum(_size(v) for v in own if v not in last)
        ended = {root.get(v, v) for v in _variables(equation.invars)} - given
        alive -= sum(_size(v) for v in ended if last[v] == number)
    # What leaves has its own shape and type, whatever it was joined with.
    return highest + sum(_size(v) for v in dict.fromkeys(results) if v in root and v not in given)


def _written(jaxpr: core.Jaxpr, in_place: int) -> set[Any]:
    """The results that are written over arguments, and the sides of a choice that ends in one.

    A compiler chooses value by value where it writes, as in the guard of a step.
    """
    written = set(_variables(jaxpr.outvars[:in_place]))
    for equation in reversed(jaxpr.eqns):
        chooses = "select_n" in (equation.primitive.name, *_names(equation))
        if chooses and len(equation.outvars) == 1 and equation.outvars[0] in written:
            size = _size(equation.outvars[0])
            written |= {v for v in _variables(equation.invars) if _size(v) == size}
    return written


def _names(equation: Any) -> list[str]:
    """What the programs inside of an instruction do last."""
    return [inner.eqns[-1].primitive.name for inner, _ in _inner(equation) if inner.eqns]


def _roots(jaxpr: core.Jaxpr) -> dict[Any, Any]:
    """Value -> the large value that it is made of again where it is read."""
    root: dict[Any, Any] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name not in _JOINED or len(equation.outvars) > 1:
            continue
        made = _size(equation.outvars[0])
        large = {root.get(v, v) for v in _variables(equation.invars) if _size(v) * _SMALL >= made}
        if len(large) == 1:
            root[equation.outvars[0]] = large.pop()
    return root


def _variables(values: Any) -> list[Any]:
    return [v for v in values if not isinstance(v, core.Literal)]


def _size(variable: Any) -> float:
    aval = variable.aval
    if not hasattr(aval, "shape"):
        return 0.0
    width = getattr(aval.dtype, "itemsize", 4)
    return math.prod(aval.shape) * width
