# SPDX-License-Identifier: Apache-2.0
"""Asks a search server everything that its description allows, and much that it does not.

    python tools/api_fuzz.py INDEX --seconds 180

Schemathesis draws requests from `/openapi.json` of a server of its own process over INDEX. A
finding is an answer of 5xx, one with a status or of a form that is not described, or bad input that
is accepted; the exit status is then 1, and each finding is shown with a curl command that repeats
it. That every request of the described form is answered is not asked: an index does not have every
number, nor a `where` every text.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

NOT_ASKED = ("positive_data_acceptance",)


def main(argv: list[str] | None = None) -> int:
    """Starts the server, and what asks it; the exit status of the latter."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("index", metavar="INDEX", help="folder that `cir-jax index` has made")
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    command = [sys.executable, "-m", "cir_jax.main", "serve", args.index, "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, "--rate", "0"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            return asked(address(server, log), args.seed, [f"--max-time={args.seconds}"])
        finally:
            server.terminate()
            server.wait(60)


def address(server: subprocess.Popen, log: "object") -> str:
    """Where a server listens, once it does."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready: "):
            return line.split()[1]
    log.seek(0)  # type: ignore[attr-defined]
    sys.exit(f"api_fuzz: the server did not start:\n{log.read()[-3000:]}")  # type: ignore[attr-defined]


def asked(url: str, seed: int, limits: Sequence[str]) -> int:
    """Runs Schemathesis with these flags, which end it; its exit status."""
    program = Path(sys.executable).with_name("schemathesis")
    flags = [
        f"{url}openapi.json",
        f"--seed={seed}",
        *limits,
        f"--exclude-checks={','.join(NOT_ASKED)}",
        "--continue-on-failure",
        "--generation-database=:memory:",
    ]
    with tempfile.TemporaryDirectory() as folder:  # it keeps files where it runs
        return subprocess.run([str(program), "run", *flags], cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
