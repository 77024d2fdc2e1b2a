# SPDX-License-Identifier: Apache-2.0
"""The tree that a `where` is read into; every store translates it, and none sees the text.

No node negates another: the reader has moved each `not` down to the leaves, where it is another
comparison or the flag `negated`. A leaf is true only where its field has a value (`IsNull` apart),
so that a tree of these leaves with two truth values gives what SQL's three give: a row whose field
is null is found neither by `price < 5` nor by `not price < 5`.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["text", "integer", "number", "boolean"]
Value: TypeAlias = str | int | float | bool
Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Compare:
    """`field operator value`, where the field is not null.

    Attributes:
      field: name of a field of the index.
      kind: of that field; the value fits it: text to "text", true and false to "boolean", a number
        to "integer" (then it may still have a fraction) and "number". Texts are ordered by their
        code points, which is the order of their UTF-8 bytes. Of "boolean" only = and != are asked.
      operator: "=", "!=", "<", "<=", ">" or ">=".
      value: finite; an integer fits int64.
    """

    field: str
    kind: Kind
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Among:
    """`field in (value, ...)`, or `not in`, where the field is not null.

    There is at least one value, none comes twice, and those of an "integer" are integers.
    """

    field: str
    kind: Kind
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class Contains:
    """`field contains 'text'`, or not, where the field is not null; upper and lower case differ.

    The text is not empty, and no character of it has another meaning than itself.
    """

    field: str
    text: str
    negated: bool = False


@dataclass(frozen=True)
class IsNull:
    """`field is null`, or `is not null`; a number that is not a number (NaN) is null."""

    field: str
    negated: bool = False


@dataclass(frozen=True)
class And:
    """All of two parts or more."""

    parts: "tuple[Tree, ...]"


@dataclass(frozen=True)
class Or:
    """Any of two parts or more."""

    parts: "tuple[Tree, ...]"


Tree: TypeAlias = Compare | Among | Contains | IsNull | And | Or
