# SPDX-License-Identifier: Apache-2.0
"""What the READMEs hold: commands, Python, example files and links, for the tests that run them."""

import re
from pathlib import Path

HERE = Path(__file__).parents[1]
# In the order in which their commands are run: later ones use what earlier ones have made.
FILES = (
    "README.md",
    "configs/README.md",
    "launch/README.md",
    "cir_jax/evals/README.md",
    "cir_jax/generation/README.md",
    "cir_jax/convert/README.md",
    "cir_jax/retrieval/README.md",
    "cir_jax/serving/README.md",
    "cir_jax/README.md",
    "cir_jax/models/README.md",
    "tools/README.md",
    ".github/CONTRIBUTING.md",
)
TEXTS = {name: (HERE / name).read_text("utf-8") for name in FILES}
_BLOCK = r"^```{}\n(.*?)^```$"
_EXAMPLE = re.compile(r"`(my_\w+\.py)`:\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(_BLOCK.format(language), text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """A README without its fenced blocks."""
    return re.sub(_BLOCK.format(r"\w*"), "", text, flags=re.DOTALL | re.MULTILINE)


# Each command once, however many READMEs show it.
COMMANDS = list(
    dict.fromkeys(
        line
        for text in TEXTS.values()
        for block in blocks(text, "bash")
        for line in block.strip().splitlines()
    )
)
# File name -> its text, of the files that a README tells to write, as `my_file.py`: and a block.
EXAMPLES = {name: body for text in TEXTS.values() for name, body in _EXAMPLE.findall(text)}
# README -> the rest of its Python, as one script.
SCRIPTS = {
    name: "\n".join(found)
    for name, text in TEXTS.items()
    if (found := blocks(_EXAMPLE.sub("", text), "python"))
}


def anchors(text: str) -> set[str]:
    """The anchors of its headings, as a repository browser makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def links(text: str) -> list[str]:
    """The targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def _cells(row: str) -> int:
    """How many cells a row of a table has; a pipe in a cell is written with a backslash."""
    return len(re.findall(r"(?<!\\)\|", row)) - 1


def faults(text: str) -> list[str]:
    """Lines that a repository browser shows as something else than what they are meant as.

    A row of a table that is cut off or has other cells than its header, a heading that is not on a
    line of its own, a block of code without an end.
    """
    found = []
    if len(re.findall(r"^```", text, re.MULTILINE)) % 2:
        found.append("a block of code has no end")
    lines = ["", *prose(text).split("\n"), ""]
    header = 0  # cells of the table that a line is in
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        wrong = _wrong_headings(before, line, after)
        if line.startswith("|"):
            wrong += _wrong_row(line, after, header)
            header = header or _cells(line)
        else:
            if header and line.strip():
                wrong.append("no empty line behind a table")
            header = 0
        found += [f"{one}: {line}" for one in wrong]
    return found


def _wrong_headings(before: str, line: str, after: str) -> list[str]:
    bare = re.sub(r"`[^`]*`", "", line)
    wrong = []
    if re.search(r"[^\s#]\s*#{2,6}\s+\S", bare) or re.search(r"\S#{2,6}\w", bare):
        wrong.append("a heading in the middle of a line")
    if re.match(r"#{1,6} ", line) and (before.strip() or after.strip()):
        wrong.append("no empty line around the heading")
    if re.match(r"#{1,6}[^\s#]", line):
        wrong.append("no space behind the mark of a heading")
    return wrong


def _wrong_row(line: str, after: str, header: int) -> list[str]:
    """`header`: cells of the header above; 0 if this line is it."""
    cells, wrong = _cells(line), []
    if not line.endswith("|"):
        wrong.append("a row without an end")
    if header and cells != header:
        wrong.append(f"{cells} cells under a header of {header}")
    if not header and not (re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", after) and _cells(after) == cells):
        wrong.append(f"a table whose second line is no {cells} dashes")
    return wrong
