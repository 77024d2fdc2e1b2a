# SPDX-License-Identifier: Apache-2.0
"""Readers of pictures, adapters, and of what runs and evaluations leave; as those in `readers`."""

import argparse
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from tools.fuzzing.making import PICTURES, Read, dump, dump_lines, pictures, table, tolerant

_PIXELS = 1 << 22  # limit of an image here, so that what is in its header is compared with little


def images(root: Path) -> Read:
    """Pictures in every format, opened in both ways."""
    from cir_jax.data import picture_files, unusable
    from cir_jax.data.pixels import NATURAL, RELEASED, Preprocess, open_image

    made = _pictures()
    for name, content in made.items():
        (root / name).write_bytes(content)
    squares = [Preprocess(16, loading=RELEASED), Preprocess(16, loading=NATURAL)]
    known: set[str] = set()  # files that were read as they are

    def read() -> None:
        with mock.patch.object(picture_files, "MAX_PIXELS", _PIXELS):
            for file in sorted(p for p in root.iterdir() if p.is_file()):
                if file.read_bytes() == made.get(file.name):
                    if file.name in known:
                        continue
                    known.add(file.name)
                for square in squares:
                    tolerant(lambda f=file, s=square: open_image(f, s.loading))
                    tolerant(lambda f=file, s=square: s(f))
                unusable.look(file, unusable.LOOK)

    return read


def _pictures() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 4), np.uint8)
    rgba = Image.fromarray(noise)
    rgb, exif = rgba.convert("RGB"), Image.Exif()
    exif[274] = 6  # turned
    wide = Image.fromarray(noise[..., 0].astype(np.uint16) * 256)
    floats = Image.fromarray(noise[..., 0].astype(np.float32))
    frames = {"save_all": True, "append_images": [rgba.rotate(90)]}
    made = {
        "a.jpg": (rgb, {"exif": exif}), "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "progressive.jpg": (rgb, {"progressive": True}), "rgba.PNG": (rgba, {}),
        "palette.PNG": (rgb.quantize(9), {"transparency": 3}), "wide.PNG": (wide, {}),
        "a.gif": (rgba, frames), "a.bmp": (rgb, {}), "grey.bmp": (rgb.convert("L"), {}),
        "a.webp": (rgb, {}), "alpha.webp": (rgba, {"lossless": True}),
        "moving.webp": (rgba, frames), "a.avif": (rgba, {}),
        "a.tiff": (rgb, {"compression": "tiff_lzw"}), "wide.tiff": (wide, {}),
        "float.tiff": (floats, {}), "jpeg.tiff": (rgb, {"compression": "jpeg"}),
        "a.ppm": (rgb, {}), "a.tga": (rgba, {}), "a.pcx": (rgb, {}), "a.jp2": (rgb, {}),
        "a.ico": (rgba, {}), "a.dds": (rgba, {}), "a.sgi": (rgb, {}), "a.im": (rgb, {}),
    }  # fmt: skip
    found = {}
    for name, (image, options) in made.items():
        file = io.BytesIO()
        with suppress(OSError, KeyError):  # a Pillow without this format
            image.save(file, Image.registered_extensions()[f".{name.rpartition('.')[2].lower()}"],
                       **options)  # fmt: skip
            found[name] = file.getvalue()
    return found


def adapters(root: Path) -> Read:
    """A LoRA adapter and its base, whose weights lie in two files with an index."""
    from cir_jax.convert import opened
    from cir_jax.convert.containers import safe_tensors, tensors

    def weights(place: Path, state: dict[str, Any]) -> None:
        place.parent.mkdir(exist_ok=True)
        with place.open("wb") as file:
            held = {name: tensors.of(np.ones(shape, np.float32)) for name, shape in state.items()}
            safe_tensors.write(file, held, {"format": "pt"})

    base = {"a.q.weight": (4, 6), "a.v.weight": (4, 6)}
    for name, shape in base.items():
        weights(root / "base" / f"{name}.safetensors", {name: shape})
    index = {"metadata": {}, "weight_map": {name: f"{name}.safetensors" for name in base}}
    dump(root / "base/model.safetensors.index.json", index)
    dump(root / "base/config.json", {"architectures": ["Own"], "hidden_size": 4})
    halves = {f"base_model.model.a.{x}.lora_{y}.weight": {"A": (2, 6), "B": (4, 2)}[y]
              for x in "qv" for y in "AB"}  # fmt: skip
    weights(root / "adapter/adapter_model.safetensors", halves)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"q": 2},
              "alpha_pattern": {"a.v": 3.0}, "init_lora_weights": True, "use_rslora": False,
              "base_model_name_or_path": "x"}  # fmt: skip
    dump(root / "adapter/adapter_config.json", config)

    def read() -> None:
        def merged() -> None:
            [source] = opened.sources_of([root / "adapter", root / "base"])
            for group in source.groups.values():
                for tensor in group.values():
                    tolerant(tensor.read)

        tolerant(merged)
        tolerant(lambda: opened.sources_of([root / "adapter"]))

    return read


def evaluations(root: Path) -> Read:
    """Two saved evaluations, as `cir-jax compare` reads them."""
    import pyarrow
    import pyarrow.parquet

    from cir_jax.evals import comparison

    records = [{"part": "", "query_id": str(i), "reference": "r.png", "text": "t", "excluded": [],
                "right": ["a.png"], "rank": i + 1, "right_ranks": [i + 1], "ranked": ["a", "b"],
                "scores": [0.5, None], "values": {"r_at1": 100.0 * (i == 0), "r_at5": 100.0}}
               for i in range(4)]  # fmt: skip
    results = {"scores": {"r_at1": 25.0, "r_at5": 100.0, "mean": 62.5}, "score": 62.5,
               "means": {"mean": ["arithmetic", ["r_at1", "r_at5"]]},
               "protocol": {"benchmark": "x", "galleries": {"x": {"gallery": 3}}}}  # fmt: skip
    for name in ("one", "two"):
        dump(root / name / "results.json", results)
    dump_lines(root / "one/rankings.jsonl", records)
    packed = [r | {"values": list(r["values"].items())} for r in records]
    rows = {key: [r[key] for r in packed] for key in records[0]}
    kinds = {"values": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
             "excluded": pyarrow.list_(pyarrow.string())}  # fmt: skip
    columns = {key: pyarrow.array(value, kinds.get(key)) for key, value in rows.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "two/rankings.parquet")

    def read() -> None:
        def both() -> None:
            one, two = comparison.read(root / "one"), comparison.read(root / "two")
            comparison.to_json(one, two, comparison.compare(one, two, draws=100), {})

        tolerant(lambda: comparison.read(root / "two"))
        tolerant(both)

    return read


def looks(root: Path) -> Read:
    """What was found out about images, kept in the cache folder."""
    from cir_jax.data import kept_looks, refusals, screening, unusable

    pictures(root / "images")
    (root / "images" / "d.png").write_bytes(b"<html>")
    paths = {p.name: str(p) for p in sorted((root / "images").iterdir())}
    cache = mock.patch.dict(os.environ, {"CIR_JAX_CACHE": str(root)})
    few = mock.patch.multiple(screening, LEAST=1), mock.patch.multiple(kept_looks, LEAST=1)

    def read() -> None:
        with cache, few[0], few[1]:
            for depth in (unusable.LOOK, unusable.DECODE):
                bad = screening.scan(paths, depth, root=str(root / "images"), threads=1)
                assert all(isinstance(str(one), str) for one in bad.values())
                refusals.summary(bad)

    read()
    return read


def products(root: Path) -> Read:
    """A folder and its titles, as `cir-jax prepare` reads them, and pairs of a file."""
    from cir_jax import config
    from cir_jax.commands import prepare
    from cir_jax.generation import pair
    from cir_jax.generation.dedupe import Groups
    from cir_jax.generation.images import Pool

    pictures(root / "shop")
    rows = [{"image": n, "title": f"a thing {i}", "sku": f"{i}"} for i, n in enumerate(PICTURES)]
    table(root / "titles.csv", rows), dump_lines(root / "titles.jsonl", rows)
    dump_lines(root / "pairs.jsonl", [{"reference": "a", "target": "b.png", "meta": {"k": 1}}])
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    overrides = ["pair.method=file", f"pair.file={root / 'pairs.jsonl'}"]
    made = config.load("positives:folder", overrides)
    pool, groups = Pool(dict.fromkeys(PICTURES, "")), Groups.make([[n] for n in PICTURES])

    def prepared(name: str) -> Any:
        words = [str(root / "shop"), "--titles", str(root / name), "--out", str(root / "out")]
        args = parser.parse_args([*words, "--group", "sku", "--val", "0.4", "--overwrite"])
        with mock.patch.dict(os.environ, {"CIR_JAX_CACHE": str(root / "cache")}):
            return prepare.run(args)

    def read() -> None:
        tolerant(lambda: prepared("titles.csv"))
        tolerant(lambda: prepared("titles.jsonl"))
        (root / "work").mkdir(exist_ok=True)
        tolerant(lambda: pair.run(made, pool, groups, PICTURES, root / "work"))

    return read


def checkpoints(root: Path) -> Read:
    """The steps of a run as they were written, and with checksums made anew after they changed."""
    import jax

    from cir_jax import config, weights
    from cir_jax.evals.reports import run_report
    from cir_jax.runtime import checkpoint, checksums

    abstract = {"a/kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}
    functions: Any = SimpleNamespace(abstract=abstract, module=SimpleNamespace())
    record = {"config": config.to_json(config.load("clip_sum:tiny")), "index_is_query": True,
              "paths": {"fixed": ["a/kernel"], "trained": []}, "shapes": {"a/kernel": [2, 3]},
              "step": 0, "seconds": 0.0, "best": None, "history": [], "data": None}  # fmt: skip
    runs = (root / "run", root / "resealed")
    for run in runs:
        made = checkpoint.Checkpoints(run / checkpoint.BEST, keep=1)
        state = {"a/kernel": jax.numpy.ones((2, 3), np.float32)}
        made.save(0, {"fixed": state, "trained": {}}, record)
        made.close()
    example = {"query_id": "1", "text": "t", "reference": "a.png", "target": "b.png",
               "target_name": "b", "rank": 1, "also": [],
               "results": [{"name": "b", "path": "b.png", "score": 0.5}]}  # fmt: skip
    best = {"scores": {"recall_at1": 5.0}, "score": 5.0, "protocol": {"queries": 3},
            "selection": "x", "examples": [example], "best": [example], "worst": []}  # fmt: skip
    dump(root / "run" / "examples.json", best)
    text, again = root / "config.json", checkpoint.BEST + "/0"
    text.write_text(record["config"])

    def read() -> None:
        with suppress(OSError):
            checksums.write(root / "resealed" / again, {"orbax-checkpoint": "0"})
        for run in runs:
            tolerant(lambda r=run: weights.config_of(r))
            tolerant(lambda r=run: weights.of_run(r, functions))
        with suppress(*weights._NO_CONFIG):  # what its callers make a message of
            weights._config_in(text.read_text(errors="replace"))
        tolerant(lambda: run_report.kept_queries(root / "run", "t"))

    return read


def columns(root: Path) -> Read:
    """Large files of triplets; the columns and tokens beside them, also with checksums made anew
    after they changed, as a stranger may bring them along."""
    import pyarrow
    import pyarrow.parquet

    from cir_jax.data import beside, pipeline, tokens
    from cir_jax.datasets import conversion, generated

    pictures(root / "images")
    record = {"reference": "a.png", "target": "b.png", "text": "in red", "id": "1", "source": "s"}
    more = [
        record | {"id": "2", "reference": "d.png", "reference_path": "images/a.png"},
        {"reference": "./b.png", "targets": ["c.png", "a.png"], "texts": ["é", "in blue"],
         "group": ["a.png", "b.png"]},
    ]  # fmt: skip
    resealed = root / "resealed"
    resealed.mkdir()
    for folder in (root, resealed):
        dump_lines(folder / "t.jsonl", [record, *more])
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), folder / "t.parquet")
    tokenizer, known = tokens.load("clip"), {n: str(root / "images" / n) for n in PICTURES}

    def opened(file: Path) -> None:
        sets = generated.read([file], known, root, images=root / "images")
        data = pipeline.prepare(sets, tokenizer, on_missing="drop")
        for share in (one.of_each_target() for one in sets):
            assert all(one.texts for one in share.triplets)
        data.tokens.rows(slice(None), 8), data.images.fingerprint()

    def read() -> None:
        for record in sorted(resealed.glob(f"{beside.FOLDER}/*/{beside.RECORD}")):
            with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
                content = json.loads(record.read_bytes())
                dump(record, content | {"files": beside.checksums(record.parent)})
        environment = {"CIR_JAX_CACHE": str(root / "cache")}
        with mock.patch.object(conversion, "LEAST", 1), mock.patch.dict(os.environ, environment):
            for folder in (root, resealed):
                for name in ("t.jsonl", "t.parquet"):
                    tolerant(lambda file=folder / name: opened(file))

    read()
    return read


def squares(root: Path) -> Read:
    """Decoded images that are kept in the cache folder."""
    from cir_jax.data.kept_pixels import KeptPixels
    from cir_jax.data.pixels import Preprocess

    pictures(root / "images")
    paths = sorted((root / "images").iterdir())
    made = Preprocess(16)
    right = [made(path) for path in paths]

    def read() -> None:
        with mock.patch.dict(os.environ, {"CIR_JAX_CACHE": str(root / "cache")}):
            kept = KeptPixels("disk", made)
        part = kept.part(again=True)
        part.expect(paths)
        for path, square in zip(paths, right, strict=True):
            assert np.array_equal(part(path), square)
        kept.close()

    read()
    return read


READERS: dict[str, Callable[[Path], Read]] = {
    f.__name__: f
    for f in (images, adapters, evaluations, looks, products, checkpoints, columns, squares)
}
