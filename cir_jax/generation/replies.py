# SPDX-License-Identifier: Apache-2.0
"""Is what a model wrote a text to train on? What is not is asked for again, then listed."""

import re

from ml_collections import ConfigDict

from cir_jax.data import text_files

_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very |really )?sorry|i am (very |really )?sorry|sorry\b|i apologi[sz]e"
    r"|i can(no|['’]?)t\b|i cannot|i['’]?m (not able|unable)|i am (not able|unable)"
    r"|i do not have the ability|i don['’]?t have the ability|as an? (ai|language model|assistant)"
    r"|unfortunately,? i\b|it is not possible (for me )?to)",
    re.IGNORECASE,
)
_QUOTES = "\"'`“”‘’«»"
_LETTERS = 24  # of a word; languages that write without spaces have no words to count


def tidy(text: str) -> str:
    """The text without blank lines, and without the quotes around it.

    A first line that only announces the text ("Here is the request:") is left out.
    """
    lines = [line for line in map(one_line, text.splitlines()) if line]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    text = "\n".join(lines)
    if len(text) > 1 and {text[0], text[-1]} <= set(_QUOTES):
        inner = text[1:-1]
        if text[0] not in inner and text[-1] not in inner:  # not: "red" or "blue"
            text = inner.strip()
    return text


def one_line(text: str) -> str:
    """All of the text, on one line."""
    return " ".join(text.split())


def fault(text: str, max_words: float) -> str:
    """Why a reply of a model is not used; "" if it is.

    Args:
      text: the reply, tidied.
      max_words: more words than this are too many.
    """
    if not any(letter.isalnum() for letter in text):
        return "empty"
    if _REFUSAL.match(text):
        return "a refusal"
    if "\n" in text:
        return "several lines"
    words = len(text.split())
    if words > max_words:
        return f"over {max_words} words: {words}"
    if len(text) > _LETTERS * max_words:
        return f"over {max_words} words of {_LETTERS} letters: {len(text)} letters"
    return broken(text)


def broken(text: str) -> str:
    """What is wrong even with a text that somebody wrote: it is blank, or has wrong characters."""
    if not any(letter.isalnum() for letter in text):
        return "empty"
    damaged = "\ufffd" in text or text_files.fault(text)
    return "broken characters" if damaged else ""


def most_words(section: ConfigDict) -> int:
    """The longest reply that `config.caption` or `config.rewrite` accepts, in words."""
    return section.max_words or 4 * section.words
