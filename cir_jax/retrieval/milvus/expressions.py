# SPDX-License-Identifier: Apache-2.0
"""A `where` as an expression of Milvus, and the fields of an image as Milvus keeps them.

Nobody's text becomes part of an expression but as a quoted value: a field is known to Milvus by the
hexadecimal digits of its name. Each field has two keys in the dynamic field of a row:

    f_HEX    its value; not there where it is null
    h_HEX    whether it has a value, true or false

The second makes nulls plain: what a comparison with a missing key gives differs between releases
of Milvus and Milvus Lite. An expression finds every image that the `where` allows and may find more
(a pattern cannot hold each character); the store looks at what it finds by `Clause.mask`.
"""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cir_jax.errors import UserError
from cir_jax.retrieval.search.conditions import (
    Among,
    And,
    Compare,
    Contains,
    IsNull,
    Kind,
    Or,
    Tree,
    Value,
)

if TYPE_CHECKING:
    import pyarrow

LONGEST_FIELDS = 65_536  # bytes of JSON that Milvus keeps of the fields of one row
_LOWEST = -(2**63)  # the reader of Milvus takes a minus and a number, which int64 does not hold
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_OPERATORS = {"=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
# Of a pattern these mean something else than themselves, or are escaped differently in patterns
# than in other texts; `_` stands for any one character.
_UNPLAIN = set("%_\\\"'\n\r\t")


def of(tree: Tree) -> str:
    """The expression of a condition."""
    if isinstance(tree, And | Or):
        word = " and " if isinstance(tree, And) else " or "
        return f"({word.join(of(part) for part in tree.parts)})"
    value, has = _value(tree.field), _has(tree.field)
    if isinstance(tree, IsNull):
        if tree.negated:
            return f"({has} == true)"
        return f"({has} == false or {has} is null or not ({has} == true))"
    if isinstance(tree, Contains):
        found = f"{value} like {_pattern(tree.text)}"
        if not tree.negated:
            return f"({has} == true and {found})"
        if _UNPLAIN & set(tree.text):  # the pattern finds too much, so its negation too little
            return f"({has} == true)"
        return f"({has} == true and not ({found}))"
    if isinstance(tree, Among):
        word = "not in" if tree.negated else "in"
        values = ", ".join(_literal(v, tree.kind) for v in tree.values)
        return f"({has} == true and {value} {word} [{values}])"
    assert isinstance(tree, Compare)
    literal = _literal(tree.value, tree.kind)
    return f"({has} == true and {value} {_OPERATORS[tree.operator]} {literal})"


def entries(ids: Any, table: "pyarrow.Table") -> Iterator[dict[str, Any]]:
    """For each image, what the dynamic field of its rows holds.

    Args:
      ids: of the images, for messages.
      table: a line an image: text, integers, numbers and booleans; other columns are left out.

    Raises:
      UserError: the fields of an image take more than LONGEST_FIELDS bytes.
    """
    from cir_jax.retrieval.search import where

    names = list(where.kinds(table.schema))
    keys = [(_value(name), _has(name)) for name in names]
    columns = [table[name].to_pylist() for name in names]
    for image, values in zip(ids, zip(*columns, strict=True), strict=True):
        entry: dict[str, Any] = {}
        for (value_key, has_key), value in zip(keys, map(_kept, values), strict=True):
            entry[has_key] = value is not None
            if value is not None:
                entry[value_key] = value
        size = len(json.dumps(entry, ensure_ascii=False).encode(errors="surrogatepass"))
        if size > LONGEST_FIELDS:
            longest = max(names, key=lambda name: len(str(values[names.index(name)])))
            raise UserError(
                f"the fields of image {image} take {size:,} bytes, of which {longest!r} has most; "
                f"Milvus keeps {LONGEST_FIELDS:,}. Shorten or leave out that column of the table"
            )
        yield entry


def _value(field: str) -> str:
    return f"f_{field.encode(errors='surrogatepass').hex()}"


def _has(field: str) -> str:
    return f"h_{field.encode(errors='surrogatepass').hex()}"


def _kept(value: Value | None) -> Value | None:
    """JSON has no NaN, which is null to us, and no infinity, which is above every number."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float):
        return min(max(value, -sys.float_info.max), sys.float_info.max)
    return value


def _literal(value: Value, kind: Kind) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if kind == "number" or isinstance(value, float) or value == _LOWEST:
        return repr(float(value))
    return str(value)


def _quoted(text: str) -> str:
    return f'"{"".join(_ESCAPES.get(c, c) for c in text)}"'


def _pattern(text: str) -> str:
    return f'"%{"".join("_" if c in _UNPLAIN else c for c in text)}%"'
