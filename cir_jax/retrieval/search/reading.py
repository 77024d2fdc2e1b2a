# SPDX-License-Identifier: Apache-2.0
"""Reads a `where`.

    condition  = all { "or" all }
    all        = one { "and" one }
    one        = "not" one | "(" condition ")" | field test
    test       = ("=" | "!=" | "<" | "<=" | ">" | ">=") value
               | ["not"] "in" "(" value { "," value } ")"
               | ["not"] "contains" text
               | "is" ["not"] "null"
    field      = a word, or anything in double quotes, where "" stands for a quote
    value      = text | number | "true" | "false"
    text       = anything in single quotes, where '' stands for a quote
    number     = as 12, -0.5 or 1e3

Words of the grammar may be in upper case. It is read once, from left to right.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple, NoReturn, cast

from cir_jax.errors import UserError, nearest
from cir_jax.retrieval.search.conditions import (
    Among,
    And,
    Compare,
    Contains,
    IsNull,
    Kind,
    Operator,
    Or,
    Tree,
    Value,
)

LONGEST = 2000  # characters
DEEPEST = 20  # parentheses and "not" inside each other

_TOKENS = re.compile(
    r"""(?P<space>\s+)
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?!\w))
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|=|<|>|\(|\)|,)""",
    re.VERBOSE,
)
_WORDS = ("and", "or", "not", "in", "contains", "is", "null", "true", "false", "like", "between")
_OPPOSITE: dict[Operator, Operator] = {
    "=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">",
}  # fmt: skip
_OTHER = {"&": "and", "|": "or", "!": "!= or not", ";": "nothing", "%": "contains '...'"}
_KINDS = {
    "text": "text: write it in quotes, 'shoes'",
    "integer": "an integer: write a number, 50",
    "number": "a number: write one, 49.90",
    "boolean": "true or false",
}


class _Token(NamedTuple):
    kind: str  # of `_TOKENS`, or "end"
    text: str
    start: int


def tree(text: str, fields: Mapping[str, Kind]) -> Tree:
    """What a `where` says; see `cir_jax.retrieval.search.where.parse`."""
    if not isinstance(text, str):
        raise UserError(f"where is a {type(text).__name__}, not a text like \"category = 'shoes'\"")
    if len(text) > LONGEST:
        raise UserError(
            f"where has {len(text):,} characters and may have {LONGEST:,}; `field in (...)` is "
            "shorter than many comparisons"
        )
    return _Reader(text, fields).whole()


class _Reader:
    def __init__(self, text: str, fields: Mapping[str, Kind]):
        self._text, self._fields = text, fields
        self._tokens = self._cut()
        self._next = 0
        self._depth = 0

    def whole(self) -> Tree:
        found = self._condition(negated=False)
        if self._token.kind != "end":
            self._fail("`and`, `or` or the end")
        return found

    def _condition(self, negated: bool) -> Tree:
        """The negation is moved down: not (a or b) is (not a) and (not b)."""
        parts = [self._all(negated)]
        while self._takes("or"):
            parts.append(self._all(negated))
        return _joined(And if negated else Or, parts)

    def _all(self, negated: bool) -> Tree:
        parts = [self._one(negated)]
        while self._takes("and"):
            parts.append(self._one(negated))
        return _joined(Or if negated else And, parts)

    def _one(self, negated: bool) -> Tree:
        start = self._token.start
        if self._depth == DEEPEST:
            self._fail(f"at most {DEEPEST} parentheses and `not` inside each other", start)
        self._depth += 1
        try:
            if self._takes("not"):
                return self._one(not negated)
            if self._takes("("):
                found = self._condition(negated)
                if not self._takes(")"):
                    self._fail("`)`, `and` or `or`")
                return found
        finally:
            self._depth -= 1
        return self._test(self._field(), negated)

    def _test(self, field: str, negated: bool) -> Tree:
        token, kind = self._token, self._fields[field]
        if token.kind == "sign" and token.text in _OPPOSITE:
            self._next += 1
            operator = cast(Operator, token.text)
            if kind == "boolean" and operator not in ("=", "!="):
                self._fail(f"= or !=, since {field} is true or false", token.start)
            value = self._value(field, kind)
            return Compare(field, kind, _OPPOSITE[operator] if negated else operator, value)
        if self._takes("is"):
            is_not = self._takes("not")
            if not self._takes("null"):
                self._fail("`null`" if is_not else "`null` or `not null`")
            return IsNull(field, negated != is_not)
        negated = negated != self._takes("not")
        if self._takes("in"):
            return Among(field, kind, self._values(field, kind), negated)
        if self._takes("contains"):
            return self._contains(field, kind, negated)
        return self._fail("=, !=, <, <=, >, >=, `in`, `contains` or `is null`")

    def _contains(self, field: str, kind: Kind, negated: bool) -> Contains:
        start = self._token.start
        if kind != "text":
            self._fail(f"a comparison: {field} is {_KINDS[kind]}; only texts contain others", start)
        text = str(self._value(field, kind))
        if not text:
            self._fail("a text that is not empty: every text contains the empty one", start)
        return Contains(field, text, negated)

    def _field(self) -> str:
        token = self._token
        if token.kind not in ("word", "quoted") or token.text.lower() in _WORDS:
            self._fail("a field, `not` or `(`")
        self._next += 1
        quoted = token.kind == "quoted"
        name = token.text[1:-1].replace('""', '"') if quoted else token.text
        if name not in self._fields:
            known = sorted(self._fields)
            listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise UserError(
                f"where, character {token.start + 1}: there is no field {_short(name)}; there "
                f"are: {listed or 'none'}.{nearest(name, known)}"
            )
        return name

    def _values(self, field: str, kind: Kind) -> tuple[Value, ...]:
        if not self._takes("("):
            self._fail("`(` and values, as in (1, 2)")
        found = [self._member(field, kind)]
        while self._takes(","):
            found.append(self._member(field, kind))
        if not self._takes(")"):
            self._fail("`,` or `)`")
        return tuple(dict.fromkeys(found))

    def _member(self, field: str, kind: Kind) -> Value:
        start = self._token.start
        value = self._value(field, kind)
        if kind == "integer" and isinstance(value, float):
            self._fail(f"an integer, as {field} is", start)
        return value

    def _value(self, field: str, kind: Kind) -> Value:
        token = self._token
        word = token.text.lower()
        self._next += 1
        if token.kind == "text" and kind == "text":
            return token.text[1:-1].replace("''", "'")
        if token.kind == "number" and kind in ("integer", "number"):
            return self._number(token, kind)
        if kind == "boolean" and token.kind == "word" and word in ("true", "false"):
            return word == "true"
        hint = ""
        if token.kind == "word" and word == "null":
            hint = "; what has no value is found by `is null`"
        elif token.kind in ("word", "quoted") and kind == "text":
            hint = "; in single quotes, '...'"
        return self._fail(f"a value of {field}, which is {_KINDS[kind]}{hint}", token.start)

    def _number(self, token: _Token, kind: Kind) -> int | float:
        try:
            value: int | float = int(token.text)
        except ValueError:
            value = float(token.text)
        # A whole number may have more digits than a float can say, so it is never made one here.
        whole = isinstance(value, int) or value.is_integer()
        finite = isinstance(value, int) or math.isfinite(value)
        if not finite or (whole and not -(2**63) <= value < 2**63):
            limit = "-2^63 to 2^63 - 1"
            self._fail(f"a number from {limit}", token.start)
        if kind == "number":
            return float(value)
        return int(value) if whole else value

    @property
    def _token(self) -> _Token:
        return self._tokens[min(self._next, len(self._tokens) - 1)]

    def _takes(self, text: str) -> bool:
        """Whether the next token is this word or sign; it is passed then."""
        token = self._token
        found = token.kind in ("word", "sign") and token.text.lower() == text
        self._next += found
        return found

    def _cut(self) -> list[_Token]:
        try:
            self._text.encode()
        except UnicodeEncodeError as error:
            self._fail("text that can be written as UTF-8", error.start)
        found, start = [], 0
        while start < len(self._text):
            match = _TOKENS.match(self._text, start)
            if match is None:
                self._unknown(start)
            kind = str(match.lastgroup)
            if kind != "space":
                found.append(_Token(kind, match[0], start))
            start = match.end()
        return [*found, _Token("end", "", len(self._text))]

    def _unknown(self, start: int) -> NoReturn:
        sign = self._text[start]
        if sign in "'\"":
            self._fail(f"{sign} again: a quote is open", start)
        self._fail(f"{_OTHER[sign]} instead" if sign in _OTHER else "a field or a value", start)

    def _fail(self, expected: str, start: int | None = None) -> NoReturn:
        start = self._token.start if start is None else start
        rest = self._text[start:].lstrip()
        found = f"found {_short(rest)}" if rest else "it ends"
        raise UserError(f"where, character {start + 1}: expected {expected}, but {found}")


def _joined(kind: type[And] | type[Or], parts: list[Tree]) -> Tree:
    """`a and (b and c)` has three parts."""
    if len(parts) == 1:
        return parts[0]
    flat: list[Tree] = []
    for part in parts:
        flat += part.parts if isinstance(part, kind) else [part]
    return kind(tuple(flat))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
