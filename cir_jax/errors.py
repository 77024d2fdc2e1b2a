# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "your input": it names the value, the limit and the remedy.

`cir-jax` prints it without a traceback and exits with status 2; anything else that is raised is a
defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used, with the value, the limit and what to do about it."""


class ServerError(UserError):
    """A server of others does not give what is needed; no file of the user's is at fault."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped `name`: " Did you mean 'x'?", or "" if nothing is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
