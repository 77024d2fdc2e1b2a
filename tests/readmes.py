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
