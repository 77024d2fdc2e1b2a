# SPDX-License-Identifier: Apache-2.0
"""Loads a search server: how fast it answers, and what it does with more than it has room for.

    python tools/serve_load.py                    100,000 images of 512 values, 1 and 32 clients
    python tools/serve_load.py --images 1000000

A server of its own process answers over an index of made vectors; the clients, in this process,
ask `POST /search` about images of the index, one question after the other on a connection that
stays open. Phases: 1 client, 32 clients, and ten times as many, who come again after the seconds of
Retry-After when they are refused. A question needs no model, so what is measured is the server and
the ranking; on a shared machine look at `server_cpu_ms`, the processor time of an answer. A table
goes to stderr; the last line, on stdout, is the result as JSON.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

REFUSED = (429, 503)
_SEED = 0


@dataclass
class Phase:
    """What some clients saw.

    Attributes:
      clients: at a time.
      seconds: of every answer with status 200.
      refused: seconds of every 429 or 503.
      statuses: how often each came; 0 is a connection that broke.
      memory: MB of the server at its end.
      processor: seconds of processors that the server used.
      wall: seconds of the phase.
    """

    clients: int
    seconds: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    memory: float = 0.0
    processor: float = 0.0
    wall: float = 0.0

    def result(self) -> dict[str, Any]:
        """JSON."""
        return {
            "clients": self.clients,
            "answers": len(self.seconds),
            "per_second": round(len(self.seconds) / self.wall, 1),
            "p50_ms": _ms(self.seconds, 50),
            "p99_ms": _ms(self.seconds, 99),
            "refused": len(self.refused),
            "refused_p50_ms": _ms(self.refused, 50),
            "refused_p99_ms": _ms(self.refused, 99),
            "statuses": dict(self.statuses),
            "server_mb": round(self.memory),
            "server_cpu_ms": round(1000 * self.processor / max(len(self.seconds), 1), 1),
        }


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; the exit status is 1 if an answer was neither 200 nor a refusal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000, help="in the index")
    parser.add_argument("--width", type=int, default=512, help="values of a vector")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="with --clients")
    parser.add_argument("--other-seconds", type=float, default=15.0, help="of the other phases")
    parser.add_argument("--k", type=int, default=10, help="results of a question")
    parser.add_argument("--batch", type=int, default=32, help="of the server")
    parser.add_argument("--queue", type=int, default=48, help="of the server")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args)
        return 0
    with tempfile.TemporaryFile("w+") as log:
        server, port = started(args, log)
        try:
            found = asyncio.run(_phases(args, server.pid, port))
        finally:
            server.terminate()
            status = server.wait(60)
    unloaded, overload = found[1], found[2]
    result = {
        "images": args.images,
        "width": args.width,
        "phases": [phase.result() for phase in found],
        "overload_p99_ratio": _ratio(overload.seconds, unloaded.seconds),
        "server_status": status,
    }
    _show(result)
    print(json.dumps(result))
    wrong = {s for phase in found for s in phase.statuses if s != 200 and s not in REFUSED}
    return 1 if wrong or unloaded.refused or status else 0


def started(args: argparse.Namespace, log: Any) -> tuple[subprocess.Popen, int]:
    """(the server's process, its port), once it answers."""
    flags = ["images", "width", "batch", "queue"]
    given = [f"--{flag}={getattr(args, flag)}" for flag in flags]
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", *given],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    assert server.stdout is not None
    for line in server.stdout:
        print(line, end="", file=sys.stderr)
        if line.startswith("ready: "):
            return server, int(line.split("/")[2].partition(":")[2])
    log.seek(0)
    sys.exit(f"serve_load: the server did not start:\n{log.read()[-3000:]}")


async def _phases(args: argparse.Namespace, pid: int, port: int) -> list[Phase]:
    found = []
    for clients, seconds in (
        (1, args.other_seconds),
        (args.clients, args.seconds),
        (10 * args.clients, args.other_seconds),
    ):
        phase, begun, used = Phase(clients), time.perf_counter(), _processor(pid)
        until = begun + seconds
        work = [_client(args, port, phase, until, number) for number in range(clients)]
        await asyncio.gather(*work)
        phase.wall = time.perf_counter() - begun
        phase.memory, phase.processor = _memory(pid), _processor(pid) - used
        found.append(phase)
        print(f"{clients} clients: {phase.result()}", file=sys.stderr)
    return found


async def _client(
    args: argparse.Namespace, port: int, phase: Phase, until: float, number: int
) -> None:
    """Asks until the time is over; each has its own connection and its own questions."""
    draw = random.Random(_SEED * 1000 + number)
    reader = writer = None
    while time.perf_counter() < until:
        body = json.dumps({"images": [{"id": draw.randrange(args.images)}], "k": args.k}).encode()
        begun = time.perf_counter()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            status, wait = await _ask(reader, writer, body)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            status, wait, writer = 0, 0.1, None
        took = time.perf_counter() - begun
        phase.statuses[status] += 1
        if status == 200:
            phase.seconds.append(took)
        elif status in REFUSED:
            phase.refused.append(took)
        await asyncio.sleep(wait)
    if writer is not None:
        writer.close()


async def _ask(reader: Any, writer: Any, body: bytes) -> tuple[int, float]:
    """(status, seconds to wait before the next question)."""
    head = (
        "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = answer.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), float(headers.get("retry-after", 0))


def serve(args: argparse.Namespace) -> None:
    """The server: everything of `cir-jax serve` but the index, which is made in memory."""
    from cir_jax.retrieval.search import answering
    from cir_jax.retrieval.search.asking import Question
    from cir_jax.serving import app, running, warming
    from cir_jax.serving.settings import Settings

    settings = Settings(port=0, rate=0, batch=args.batch, queue=args.queue)
    port = running.bound(settings)

    def warm(index: Any) -> None:
        for size in warming.powers(args.batch):
            answering.answer(index, [Question(images=(number,)) for number in range(size)])

    made = app.make({"made": Made(args.images, args.width)}, settings, warm=warm, log=_nowhere)
    running.serve(made, settings, port)


class Made:
    """An index of random unit vectors, one an image, as a server reads it."""

    def __init__(self, images: int, width: int):
        import pyarrow as pa

        from cir_jax.retrieval.index import catalogue
        from cir_jax.retrieval.stores import embedded
        from cir_jax.retrieval.tables import Rows

        rows = np.random.default_rng(_SEED).standard_normal((images, 1, width), np.float32)
        for start in range(0, images, 65_536):
            part = rows[start : start + 65_536]
            part /= np.linalg.norm(part, axis=-1, keepdims=True)
        ids, none = np.arange(images), np.zeros(images, np.int64)
        content = pa.array([int(i).to_bytes(16, "big") for i in ids], pa.binary(16))
        columns = [ids, [f"{i}.jpg" for i in ids], none.astype(np.int32), ids, none, none, content]
        self.catalogue = catalogue.Catalogue(pa.table(columns, schema=catalogue.SCHEMA))
        shape = (1, width)
        self.store = embedded.Store({0: Rows(rows)}, ids, none, ids, shape=shape)
        self.model = SimpleNamespace(retriever=lambda few: _retriever(shape))
        self.folder = self.root = Path(tempfile.gettempdir()) / "cir_jax-no-index"
        self.generation, self.queries = 1, []

    def newer(self) -> None:
        """It stays as it is."""

    def path_of(self, number: int) -> str:
        """A file that is not there: a question by ids opens none."""
        return str(self.root / self.catalogue.name(number))


def _retriever(shape: tuple[int, int]) -> SimpleNamespace:
    """Of a model that is never asked to encode."""
    functions = SimpleNamespace(target_shape=shape, text_alone=True, sums=False)
    tokenizer = SimpleNamespace(cuts=True)
    return SimpleNamespace(
        functions=functions, tokenizer=tokenizer, on_long="error", encode_queries=None
    )


def _nowhere(line: str) -> None:
    """Takes the line of a request."""


def _memory(pid: int) -> float:
    """MB that a process holds; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    except (OSError, IndexError):
        return 0.0
    return int(fields[0]) / 1024


def _processor(pid: int) -> float:
    """Seconds of processors that a process has used; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ms(seconds: list[float], percentile: int) -> float | None:
    return round(1000 * float(np.percentile(seconds, percentile)), 1) if seconds else None


def _ratio(one: list[float], other: list[float]) -> float | None:
    if not one or not other:
        return None
    return round(float(np.percentile(one, 99) / np.percentile(other, 99)), 2)


def _show(result: dict[str, Any]) -> None:
    columns = ("clients", "answers", "per_second", "p50_ms", "p99_ms", "refused", "server_mb")
    columns += ("server_cpu_ms",)
    print(f"{result['images']:,} x {result['width']}", file=sys.stderr)
    print("  ".join(f"{name:>13}" for name in columns), file=sys.stderr)
    for phase in result["phases"]:
        print("  ".join(f"{phase[name]!s:>13}" for name in columns), file=sys.stderr)
    print(f"p99 at ten times the load: {result['overload_p99_ratio']} times", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
