# SPDX-License-Identifier: Apache-2.0
"""The best ten images of an index, against the bare matrix product of the same sizes.

The vectors are made, drawn from a normal distribution and of length 1: near ties are more frequent
than among images, so that what float16 and int8 lose is more than there. All of it happens in one
process: the embedded store on float32, float16 and int8 rows that are mapped from files, FAISS's
flat index, and Milvus Lite. The product multiplies float32 arrays that are on the device and leaves
its result there; every search begins with the queries and ends with ids and scores on the host.
"""

import argparse
import math
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from cir_jax.retrieval.index import quantized
from cir_jax.retrieval.milvus.collection import Collection
from cir_jax.retrieval.milvus.connection import Connection, place
from cir_jax.retrieval.search.asking import Terms
from cir_jax.retrieval.stores import embedded
from cir_jax.retrieval.tables import Rows
from cir_jax.runtime import mesh as meshes
from tools.benchmarks import timing

HELP = "exact search, against the bare matrix product, FAISS and Milvus Lite"
BEST = 10
_DRAWN = 2**22  # values at a time
Best = tuple[np.ndarray, np.ndarray]  # ids [Q, 10], scores [Q, 10]
Search = Callable[[np.ndarray], Best]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes and engines."""
    parser.add_argument(
        "--sizes", nargs="+", default=["100000x1x512", "1000000x1x512", "25000x32x256"],
        help="images x rows of an image x width",
    )  # fmt: skip
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], help="queries at once")
    parser.add_argument("--folder", help="for the files, twice the size of the rows")
    parser.add_argument(
        "--milvus-most", type=int, default=100_000, help="rows that Milvus Lite is given at most"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all sizes; ratios are to the product of the same round."""
    mesh = meshes.make(devices=jax.devices()[: args.devices])
    found: list[dict[str, Any]] = []
    for size in args.sizes:
        images, each, width = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rows = _made(Path(folder) / "rows.npy", (images, each, width))
            lines = [
                {"images": images, "rows": each, "width": width, **one}
                for one in _measured(args, rows, Path(folder), mesh)
            ]
        timing.table(list(lines[0]), [list(line.values()) for line in lines])
        found += lines
    return {"results": found}


def _made(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Rows of length 1, mapped from a file."""
    rows = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    random = np.random.default_rng(0)
    step = max(1, _DRAWN // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        part = random.standard_normal((min(step, shape[0] - start), *shape[1:]), np.float32)
        rows[start : start + step] = part / np.linalg.norm(part, axis=-1, keepdims=True)
    rows.flush()
    return np.load(path, mmap_mode="r")


def _measured(
    args: argparse.Namespace, rows: np.ndarray, folder: Path, mesh: Any
) -> Iterator[dict[str, Any]]:
    """One line for each engine and batch."""
    random = np.random.default_rng(1)
    queries = random.standard_normal((max(args.batches), rows.shape[2]), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    flat = np.asarray(rows).reshape(-1, rows.shape[2])
    placed = jax.device_put(flat[: len(flat) // mesh.size * mesh.size], meshes.row_sharding(mesh))
    product = jax.jit(lambda q, g: jnp.dot(q, g.T, precision="highest"))
    truth = None
    for name, search in _engines(args, rows, folder, mesh):
        best = search(queries)
        truth = best if truth is None else truth
        lost = _lost(rows, queries, truth, best)
        for batch in args.batches:
            part = queries[:batch]
            on_device = jax.device_put(part, meshes.replicated(mesh))
            seconds = timing.alternate(
                {
                    "product": lambda q=on_device: product(q, placed),
                    "search": lambda q=part, search=search: search(q)[1],
                },
                args.repeats,
            )
            with _Memory() as memory:
                search(part)
            yield {
                "engine": name,
                "batch": batch,
                "product_ms": 1e3 * statistics.median(seconds["product"]),
                "search_ms": 1e3 * statistics.median(seconds["search"]),
                "time_ratio": timing.ratio(seconds, "search", "product"),
                **lost,
                "grown_mib": memory.grown / 2**20,
            }


def _lost(rows: np.ndarray, queries: np.ndarray, truth: Any, best: Any) -> dict[str, Any]:
    """Share of the true best that was found, and how far scores are from the true ones."""
    pairs = list(zip(truth[0], best[0], strict=True))
    right = sum(len(np.intersect1d(*pair)) for pair in pairs)
    exact = np.einsum("qnkd,qd->qnk", rows[best[0]].astype(np.float64), queries).max(axis=-1)
    return {
        "recall": right / truth[0].size,
        "difference": f"{np.abs(exact - best[1]).max():.1e}",
    }


def _engines(
    args: argparse.Namespace, rows: np.ndarray, folder: Path, mesh: Any
) -> Iterator[tuple[str, Search]]:
    """(name, queries [Q, D] -> (ids [Q, 10], scores [Q, 10])), one after the other."""
    yield "float32", embedded_search(Rows(rows), mesh)
    if mesh.devices.flat[0].platform != "cpu":
        yield "approximate", embedded_search(Rows(rows), mesh, exact=False)
    for dtype in quantized.DTYPES[1:]:
        yield dtype, embedded_search(_smaller(rows, dtype, folder), mesh)
    if rows.shape[1] == 1:
        yield "FAISS", _faiss(rows)
        if len(rows) <= args.milvus_most:
            yield from _milvus(rows, folder)


def embedded_search(segment: Rows, mesh: Any, exact: bool = True) -> Search:
    ids = np.arange(len(segment.rows))
    number = np.zeros(len(ids), np.int32)
    store = embedded.Store({0: segment}, ids, number, ids, shape=segment.rows.shape[1:], mesh=mesh)
    group, weight = np.zeros(1, np.int32), np.ones(1, np.float32)
    return lambda queries: store.top([Terms(q[None], group, weight) for q in queries], BEST, exact)


def _smaller(rows: np.ndarray, dtype: str, folder: Path) -> Rows:
    """The rows as an index of this type keeps them, mapped from files."""
    path, scales = folder / f"{dtype}.npy", np.empty(rows.shape[:2], np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), rows.shape)
    step = max(1, _DRAWN // math.prod(rows.shape[1:]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        out[part], scale = quantized.stored(rows[part], dtype)
        if scale is not None:
            scales[part] = scale
    out.flush()
    return Rows(np.load(path, mmap_mode="r"), scales if dtype == "int8" else None)


def _faiss(rows: np.ndarray) -> Search:
    import faiss

    index = faiss.IndexFlatIP(rows.shape[2])
    index.add(np.asarray(rows[:, 0]))

    def search(queries: np.ndarray) -> Best:
        scores, ids = index.search(queries, BEST)
        return ids, scores

    return search


def _milvus(rows: np.ndarray, folder: Path) -> Iterator[tuple[str, Search]]:
    """Milvus Lite alone: its rows, ids and scores, without what the store adds."""
    connection = Connection(place(str(folder / "milvus.db")))
    collection = Collection(connection, "bench", 1, rows.shape[2])
    collection.create()
    collection.load()
    step = 10_000
    for start in range(0, len(rows), step):
        part = np.asarray(rows[start : start + step])
        ids = np.arange(start, start + len(part))
        collection.add(ids, part, pa.table({"name": [str(i) for i in ids]}))

    def search(queries: np.ndarray) -> Best:
        found = connection.client.search(
            "bench", data=list(queries), anns_field="row", limit=BEST,
            search_params={"metric_type": "IP"},
        )  # fmt: skip
        ids = np.array([[hit["pk"] for hit in hits] for hits in found])
        return ids, np.array([[hit["distance"] for hit in hits] for hits in found], np.float32)

    yield "Milvus Lite", search
    connection.close()


class _Memory:
    """Largest growth of what the process holds beside mapped files, while it is entered: bytes."""

    grown = 0

    def __enter__(self) -> "_Memory":
        self._stop, self._start = threading.Event(), _anonymous()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.grown = max(self.grown, _anonymous() - self._start)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def _anonymous() -> int:
    """Bytes; 0 where Linux's /proc is not."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
