# SPDX-License-Identifier: Apache-2.0
"""Is what a model wrote a text to train on? What is not is asked for again, then listed."""

import re

_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very |really )?sorry|i am (very |really )?sorry|sorry\b|i apologi[sz]e"
    r"|i can(no|['’]?)t\b|i cannot|i['’]?m (not able|unable)|i am (not able|unable)"
    r"|i do not have the ability|i don['’]?t have the ability|as an? (ai|language model|assistant)"
    r"|unfortunately,? i\b|it is not possible (for me )?to)",
    re.IGNORECASE,
)
_QUOTES = "\"'`“”‘’«»"


def tidy(text: str) -> str:
    """One line, without the quotes around it.

    A first line that only announces the text ("Here is the request:") is left out.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    text = re.sub(r"\s+", " ", lines[0]).strip() if lines else ""
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return text


def fault(text: str, max_words: float) -> str:
    """Why `text`, tidied, is not used; "" if it is.

    Args:
      text: what the model wrote.
      max_words: more words than this are too many.
    """
    if not any(letter.isalnum() for letter in text):
        return "empty"
    if _REFUSAL.match(text):
        return "a refusal"
    words = len(text.split())
    if words > max_words:
        return f"{words} words, over {max_words}"
    if "\ufffd" in text:
        return "broken characters"
    return ""


def most_words(section: object) -> int:
    """The longest reply that `config.caption` or `config.rewrite` accepts, in words."""
    return section.max_words or 4 * section.words
