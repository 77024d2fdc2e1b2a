# SPDX-License-Identifier: Apache-2.0
"""`where`: what it says, against SQL's three truth values written out; and what it refuses."""

import random

import numpy as np
import pyarrow as pa
import pytest

from cir_jax.errors import UserError
from cir_jax.retrieval.search import where
from cir_jax.retrieval.search.conditions import Among, And, Compare, Contains, IsNull, Or

COLUMNS = {
    "name": pa.array(["a/1.jpg", "old/2.jpg", "it's.jpg", "ÄÖ/4.jpg", "100%.jpg", "_.jpg"]),
    "category": pa.array(["shoes", None, "hats", "shoes", "", "Shoes"]),
    "unit price": pa.array([49.5, None, float("nan"), 80.0, -1.0, 0.0]),
    "count": pa.array([1, None, 3, 2**62, -4, 0], pa.int64()),
    "sale": pa.array([True, False, None, True, False, None]),
}
TABLE = pa.table(COLUMNS)
KINDS = where.kinds(TABLE.schema)
ROWS = [
    {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}
    for row in TABLE.to_pylist()
]


def found(text, table=TABLE):
    return where.parse(text, KINDS).mask(table).nonzero()[0].tolist()


def test_kinds_of_columns():
    assert KINDS == {
        "name": "text",
        "category": "text",
        "unit price": "number",
        "count": "integer",
        "sale": "boolean",
    }
    others = pa.schema([("l", pa.list_(pa.int64())), ("t", pa.timestamp("s")), ("i", pa.int8())])
    assert where.kinds(others) == {"i": "integer"}


@pytest.mark.parametrize(
    "text, rows",
    [
        ("category = 'shoes'", [0, 3]),
        ("not category = 'shoes'", [2, 4, 5]),  # and not the one that has none
        ("category != 'shoes'", [2, 4, 5]),
        ("category is null", [1]),
        ("NOT category IS NOT NULL", [1]),
        ('"unit price" is null', [1, 2]),
        ("\"unit price\" < 50 and category = 'shoes'", [0]),
        ("not (\"unit price\" < 50 or category = 'hats')", [3]),
        ("count in (1, 3,1)", [0, 2]),
        ("count not in (1, 3)", [3, 4, 5]),
        ("count > 0.5 and count < 1e1", [0, 2]),
        ("count >= 4611686018427387904", [3]),
        ("count = 4611686018427387905", []),
        ("sale = true or sale = false", [0, 1, 3, 4]),
        ("sale != TRUE", [1, 4]),
        ("sale in (true, false)", [0, 1, 3, 4]),
        ("name contains '%'", [4]),
        ("name contains '_'", [5]),
        ("name contains 'it''s'", [2]),
        ("name not contains '.jpg'", []),
        ("name contains 'äö'", []),  # upper and lower case differ
        ("category contains 'hoes' and not name contains '/'", [5]),
        ("category < 'a'", [4, 5]),
        ("sale = true and count = 1 or category = 'hats'", [0, 2]),
        ("sale = true and (count = 1 or category = 'hats')", [0]),
    ],
)
def test_what_it_finds(text, rows):
    assert found(text) == rows


def test_the_tree_has_no_negation_but_at_its_leaves():
    clause = where.parse("not (count = 1 and (sale = true or not category in ('a', 'b')))", KINDS)
    assert clause.tree == Or(
        (
            Compare("count", "integer", "!=", 1),
            And((Compare("sale", "boolean", "!=", True), Among("category", "text", ("a", "b")))),
        )
    )
    one = where.parse("not (not name contains 'x' or count is null)", KINDS).tree
    assert one == And((Contains("name", "x"), IsNull("count", negated=True)))
    flat = where.parse("count = 1 and (count = 2 and count = 3) and count = 4", KINDS).tree
    assert isinstance(flat, And) and len(flat.parts) == 4
    assert where.parse("count = 5.0", KINDS).tree == Compare("count", "integer", "=", 5)
    assert type(where.parse('"unit price" = 5', KINDS).tree.value) is float


# (text, truth of a row: True, False or None) at random; the truth by SQL's rules.
def leaf(rng):
    field = rng.choice(list(KINDS))
    kind = KINDS[field]
    values = {
        "text": ["shoes", "", "it's", "Shoes", "jpg"], "number": [50.0, 0.0, -1.0, 80.0],
        "integer": [1, -4, 2**62, 1.5], "boolean": [True, False],
    }[kind]  # fmt: skip
    written = f'"{field}"' if " " in field or rng.random() < 0.2 else field
    say = lambda v: ("'" + v.replace("'", "''") + "'") if isinstance(v, str) else str(v).lower()
    form = rng.choice(["compare", "compare", "in", "null", *(["contains"] * (kind == "text"))])
    negated = rng.random() < 0.3
    flip = lambda truth: None if truth is None else truth != negated
    no = "not " if negated else ""
    if form == "null":
        return f"{written} is {no}null", lambda row: (row[field] is None) != negated
    if form == "in":
        some = [v for v in rng.sample(values, 2) if v != 1.5] or [1]
        listed = ",".join(map(say, some))
        return (
            f"{written} {no}in ({listed})",
            lambda row: flip(None if row[field] is None else row[field] in some),
        )
    value = rng.choice(values)
    if form == "contains":
        value = value or "s"
        return (
            f"{written} {no}contains {say(value)}",
            lambda row: flip(None if row[field] is None else value in row[field]),
        )
    signs = {"=": "__eq__", "!=": "__ne__"}
    if kind != "boolean":
        signs |= {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
    sign = rng.choice(list(signs))

    def truth(row):
        if row[field] is None:
            return None
        left = float(row[field]) if isinstance(value, float) else row[field]
        return getattr(left, signs[sign])(value)

    return f"{written}{rng.choice(['', ' '])}{sign} {say(value)}", truth


def condition(rng, depth):
    if not depth or rng.random() < 0.25:
        return leaf(rng)
    form = rng.choice(["and", "or", "not", "( )"])
    one, truth = condition(rng, depth - 1)
    if form == "not":
        return f"not ({one})", lambda row: None if truth(row) is None else not truth(row)
    if form == "( )":
        return f"( {one} )", truth
    other, second = condition(rng, depth - 1)
    # In parentheses: and binds tighter than or, which the cases above test.
    decides = form == "or"

    def both(row):
        truths = truth(row), second(row)
        if decides in truths:
            return decides
        return None if None in truths else not decides

    return f"({one}) {rng.choice([form, form.upper()])}\n({other})", both


def test_three_truth_values_at_random():
    rng = random.Random(5)
    hits = 0
    for _ in range(400):
        text, truth = condition(rng, 4)
        expected = [i for i, row in enumerate(ROWS) if truth(row) is True]
        assert found(text) == expected, text
        hits += len(expected)
    assert 400 < hits < 2000  # neither all nor none


def test_chunks_and_no_rows():
    chunks = pa.concat_tables([TABLE.slice(0, 2), TABLE.slice(2)])
    assert found("count in (1, 3)", chunks) == [0, 2]
    assert where.parse("count = 1 or name contains 'a'", KINDS).mask(TABLE.slice(0, 0)).shape == (
        0,
    )
    mask = where.parse("count = 1", KINDS).mask(TABLE)
    assert mask.dtype == np.bool_ and mask.shape == (6,)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "character 1: expected a field"),
        ("   ", "it ends"),
        ("categorie = 'x'", r"no field 'categorie'.*Did you mean 'category'"),
        ("category = 5", "value of category, which is text: write it in quotes"),
        ("category = shoes", "in single quotes"),
        ("category = null", "found by `is null`"),
        ('category = "shoes"', "in single quotes"),
        ("count = '5'", "an integer: write a number"),
        ("count = true", "an integer"),
        ("sale = 1", "true or false"),
        ("sale < true", "= or !="),
        ("count in ()", "an integer"),
        ("count in (1", "`,` or `\\)`"),
        ("count in (1.5)", "an integer, as count is"),
        ("count contains '1'", "only texts contain others"),
        ("name contains ''", "not empty"),
        ("name like '%a%'", "`in`, `contains`"),
        ("count = 1 and", "it ends"),
        ("count = 1 count = 2", "`and`, `or` or the end"),
        ("(count = 1", "`\\)`, `and` or `or`"),
        ("count = 1)", "the end"),
        ("count = 1; drop table images", "nothing instead"),
        ("count = 1 && sale = true", "and instead"),
        ("count = 1 || sale = true", "or instead"),
        ("count == 1", "character 8"),
        ("count <> 1", "character 8"),
        ("count = 1e999", "2\\^63"),
        ("count < " + "9" * 400, "2\\^63"),  # more digits than a float can say
        ('"unit price" > -' + "9" * 400, "2\\^63"),
        ("count = 9223372036854775808", "2\\^63"),
        ("count = 0x10", "character 9"),
        ("count = 1_000", "character 9"),
        ("count = nan", "an integer"),
        ("name = 'a", "a quote is open"),
        ('"name = 1', "a quote is open"),
        ("name = '\ud800'", "UTF-8"),
        ("and = 1", "a field, `not` or"),
        ("is is null", "a field, `not` or"),
        ("category is 5", "`null` or `not null`"),
        ("category is not 5", "`null`, but"),
        ("category", "it ends"),
        ("not", "it ends"),
        ("(" * 21 + "count = 1" + ")" * 21, "at most 20"),
        ("not " * 1000 + "x", "2,000"),
        ("not " * 30 + "count = 1", "at most 20"),
        (
            "count in (" + ",".join(map(str, range(1000))) + ")",
            "3,900 characters and may have 2,000",
        ),
    ],
)
def test_what_it_refuses(text, message):
    with pytest.raises(UserError, match=message) as refused:
        where.parse(text, KINDS)
    assert str(refused.value).startswith("where")


def test_a_where_is_text_and_an_index_may_have_no_fields():
    with pytest.raises(UserError, match="where is a int"):
        where.parse(5, KINDS)
    with pytest.raises(UserError, match="there are: none"):
        where.parse("a = 1", {})


def test_nothing_but_user_errors_at_random():
    rng = random.Random(8)
    pieces = [
        *KINDS, '"unit price"', "and", "or", "not", "in", "contains", "is", "null", "true", "(",
        ")", ",", "=", "!=", "<=", "'", "''", '"', "'a'", "5", "-1.5e3", "1e999", ".", "\\", "\0",
        "\u202e", "\ud800", "🙂", "--", "/*", "{", "$", "%s", "count", "=", "1", " ", "\n",
    ]  # fmt: skip
    refused = 0
    for _ in range(3000):
        text = rng.choice(["", " "]).join(rng.choices(pieces, k=rng.randint(0, 12)))
        try:
            clause = where.parse(text, KINDS)
        except UserError:
            refused += 1
        else:
            assert clause.mask(TABLE).shape == (6,)
    valid = ["count = 1 and name contains 'a''b' or not (sale = true)", "count in (1, 2, -3)"]
    for _ in range(2000):  # one change of a valid one
        text = list(rng.choice(valid))
        at = rng.randrange(len(text))
        text[at : at + rng.randint(0, 2)] = rng.choice(["", *pieces])
        try:
            where.parse("".join(text), KINDS).mask(TABLE)
        except UserError:
            refused += 1
    assert 2000 < refused < 5000
