# SPDX-License-Identifier: Apache-2.0
"""Every reader of files from elsewhere: how to make files that it takes, and how to read them.

Each function below is a reader by its name. It writes files into an empty folder, those of a small
data set, a model or a run, and returns what reads all of them; what it reads may then be spoiled.
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzzing import own_files
from tools.fuzzing.making import PICTURES, Read, dump, dump_lines, pictures, shard, table, tolerant

_RECORDS = [{"image": n, "caption": f"a picture of {n[0]}", "meta": {"n": 1.5}} for n in PICTURES]
_TRIPLETS = [
    {"reference": "a", "target": "b.png", "text": "in red", "id": "1", "group": ["a", "b", "c"]},
    {"reference": "b", "target": "c", "texts": ["é", "in blue"], "source": "s", "meta": {"k": 1}},
]


def fashioniq(root: Path) -> Read:
    """Annotations of FashionIQ."""
    from cir_jax.datasets.readers import fashioniq as reader

    pictures(root / "images")
    record = {"candidate": "a", "captions": ["is red", "has no collar"]}
    for split in ("train", "val", "test"):
        rest = {} if split == "test" else {"target": "b"}
        dump(root / f"captions/cap.dress.{split}.json", [record | rest] * 2)
        dump(root / f"image_splits/split.dress.{split}.json", ["a", "b", "c"])

    def read() -> None:
        reader.read(root), reader.read(root, "val"), reader.images(root)
        reader.gallery(root, "dress", "val")
        reader.examine(root, ("dress",))

    return read


def cirr(root: Path) -> Read:
    """Annotations of CIRR."""
    from cir_jax.datasets.readers import cirr as reader

    pictures(root / "dev")
    record = {"pairid": 1, "reference": "a", "target_hard": "b", "caption": "in red",
              "img_set": {"id": 1, "members": ["a", "b", "c"]}}  # fmt: skip
    for split in ("train", "val", "test1"):
        dump(root / f"cirr/captions/cap.rc2.{split}.json", [record, record])
        names = {n[0]: f"./dev/{n}" for n in PICTURES}
        dump(root / f"cirr/image_splits/split.rc2.{split}.json", names)

    def read() -> None:
        for split in ("train", "val", "test1"):
            reader.read(root, split), reader.gallery(root, split)
        reader.examine(root)

    return read


def circo(root: Path) -> Read:
    """Annotations of CIRCO."""
    from cir_jax.datasets.readers import circo as reader

    record = {"id": 0, "reference_img_id": 1, "target_img_id": 2, "gt_img_ids": [2, 3],
              "relative_caption": "in red", "shared_concept": "a dress",
              "semantic_aspects": ["direct_addressing"]}  # fmt: skip
    for split in ("val", "test"):
        dump(root / f"annotations/{split}.json", [record, record | {"id": 1}])
    listed = {"images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(4)]}
    dump(reader.image_list(root), listed)

    def read() -> None:
        reader.queries(root, "val"), reader.queries(root, "test"), reader.candidates(root)
        reader.examine(root)

    return read


def genecis(root: Path) -> Read:
    """Annotations of GeneCIS."""
    from cir_jax.datasets.readers import genecis as reader

    box = {"image_id": 1, "instance_bbox": [1.0, 2.0, 3.0, 4.0]}
    for task in reader.TASKS:
        item = box if task.endswith("attribute") else {"val_image_id": 7}
        other = {k: 9 if k.endswith("id") else v for k, v in item.items()}
        record = {"reference": item, "target": other, "condition": "red", "gallery": [item, other]}
        dump(root / f"{task}.json", [record])
        dump(root / f"genecis/{task}.json", [record])

    def read() -> None:
        for task in reader.TASKS:
            if reader.has_task(root, task):
                reader.read_task(root, task)
        reader.examine(root)

    return read


def folder(root: Path) -> Read:
    """The neutral layout, with a gallery."""
    from cir_jax.datasets.readers import folder as reader

    pictures(root / "images")
    for split in ("train", "val"):
        dump_lines(root / f"{split}.jsonl", _TRIPLETS)
    (root / "gallery.txt").write_text("a\nb.png\n\nc\n")

    def read() -> None:
        reader.read(root), reader.gallery(root), reader.held_out(root), reader.examine(root)

    return read


def generated(root: Path) -> Read:
    """Generated triplets, neutral and in the released layouts."""
    from cir_jax.datasets import generated as reader

    dump_lines(root / "n.jsonl", _TRIPLETS)
    record = {"candidate": "a", "target": "b", "captions": ["x"], "llm_caption": "y"}
    cirr_record = {"reference": "a", "target_hard": "b", "caption": ["x"], "llm_caption": "y"}
    cc_record = {"reference": "a.png", "target": "b.png", "reference_name": "u", "captions": ["x"]}
    dump(root / "f.json", [record, cirr_record, cc_record])
    known: dict[str, Any] = {n: str(root / n) for n in PICTURES}
    return lambda: reader.read(["n.jsonl", "f.json"], known, root, images=root)


def captions(root: Path) -> Read:
    """Captions, as stage zero and positives read them."""
    from cir_jax.datasets import captions as reader

    dump(root / "l.json", _RECORDS)
    dump(root / "d.json", {r["image"]: r["caption"] for r in _RECORDS})
    dump_lines(root / "l.jsonl", _RECORDS)
    rows = [{k: r[k] for k in ("image", "caption")} for r in _RECORDS]
    table(root / "t.csv", rows), table(root / "t.tsv", rows, "\t")
    picture = b"\x89PNG"
    shard(root / "s.tar", {"a.png": picture, "a.txt": b"x", "a.json": b'{"caption": "y"}'})
    (root / "p.csv.gz").write_bytes(gzip.compress((root / "t.csv").read_bytes()))

    def read() -> None:
        choices = reader.Choices.of("caption.", duplicates="last", unknown="ignore")
        for file in sorted(root.iterdir()):
            tolerant(lambda f=file: reader.read(f))
            tolerant(lambda f=file: reader.collect([f], choices, PICTURES))

    return read


def importers(root: Path) -> Read:
    """Triplets of other projects."""
    import pyarrow
    import pyarrow.parquet

    from cir_jax.datasets.importing import run

    lasco = {"qid": 1, "query-image": [1, "a.png"], "query-text": "x", "target-image": [2, "b.png"]}
    mega = {"q_img": "a.png", "q_text": ["x"], "t_img": "b.png", "hns": ["c.png"]}
    covr = {"txt1": "a", "txt2": "b", "edit": "x", "pth1": "1/a", "pth2": "2/b"}
    spn = {"candidate": "a", "target": "b", "captions": ["x"]}
    made = root / "in"
    dump(made / "lasco.json", [lasco, lasco | {"qid": 2}])
    dump_lines(made / "megapairs.jsonl", [mega])
    table(made / "webvid_covr.csv", [covr, covr | {"edit": "y"}])
    dump(made / "spn.json", [spn])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([mega]), made / "megapairs.parquet")
    members = {"1.a.png": b"x", "1.b.png": b"y", "1.json": b'{"t": "x"}'}
    shard(made / "synthtriplets18m.tar", members)

    def read() -> None:
        for file in sorted(made.iterdir()):
            name, options = file.stem, {}
            if file.suffix == ".tar":
                options = {"reference": "a.png", "target": "b.png", "text": "json.t"}
            tolerant(
                lambda f=file, n=name, o=options: run.run(
                    n, [f], root / "out.jsonl", options=o, refused=root / "no.jsonl", overwrite=True
                )
            )

    return read


def lists(root: Path) -> Read:
    """Lists beside the data: equal images, more images, names of features, pairs."""
    from cir_jax.data import image_table
    from cir_jax.datasets import records, unlabelled
    from cir_jax.generation import dedupe, features, journal

    optimized = [["a", "b"], ["a.png", "b.png"], {"a": 0, "b": 1, "c": 1}]
    dump(root / "optimized_images.json", optimized)
    dump(root / "same_image_list.json", [[0], [1, 2]])
    dump(root / "more.json", ["a.png", "b.png"])
    dump_lines(root / "journal.jsonl", [{"image": "a", "text": "x"}])
    (root / "names.txt").write_text("a\nb\nc\n")
    dump(root / "packed" / records.INDEX, {"folder": "f", "names": ["a", "b"]})
    names = {n: str(root / f"{n}.png") for n in "abc"}

    def opened() -> None:
        with journal.Journal(root / "journal.jsonl") as kept:
            list(kept.records())

    def read() -> None:
        for work in (
            lambda: image_table.groups(str(root / "optimized_images.json")),
            lambda: dedupe.read_groups(root / "optimized_images.json", names),
            lambda: dedupe.read_groups(root / "same_image_list.json", names),
            lambda: unlabelled._images("more.json", root),
            lambda: features._row_names(str(root / "names.txt")),
            lambda: records.images(root),
            opened,
        ):
            tolerant(work)

    return read


def containers(root: Path) -> Read:
    """Weights in every container."""
    import pickle

    from cir_jax.convert import identify, sources
    from cir_jax.convert.containers import safe_tensors, tensors, torch_writer

    state = {f"visual.layer.{i}.weight": tensors.of(np.ones((2, 3), np.float32)) for i in range(3)}
    with (root / "w.safetensors").open("wb") as file:
        safe_tensors.write(file, state, {"format": "pt"})
    with (root / "w.pt").open("wb") as file:
        torch_writer.write(file, {"state_dict": state, "epoch": 3})
    (root / "plain.pkl").write_bytes(pickle.dumps({"a": [1, 2.5, "x"]}, 2))
    try:
        import torch
    except ImportError:
        pass
    else:
        module = torch.nn.Linear(2, 3)
        torch.save(module.state_dict(), root / "old.pth", _use_new_zipfile_serialization=False)
        torch.save({"state_dict": module.state_dict(), "epoch": 1}, root / "new.pt")

    def read() -> None:
        for path in sorted(root.iterdir()):
            tolerant(lambda p=path: _all_values(identify, sources.open_source(p)))

    return read


def _all_values(identify: Any, source: Any) -> None:
    identify.candidates(source)
    identify.describe(source)
    for group in source.groups.values():
        for tensor in group.values():
            if tensor.nbytes < 1 << 24:
                tolerant(tensor.read)


def model_folders(root: Path) -> Read:
    """Folders of transformers: configs, tokenizers and image processors beside weights."""
    from cir_jax.convert import identify, sources
    from cir_jax.convert.containers import safe_tensors, tensors
    from cir_jax.towers.blip import huggingface
    from cir_jax.towers.clip import processor_files

    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 8, "hidden_act": "quick_gelu"}  # fmt: skip
    clip = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 8,
            "text_config": tower | {"vocab_size": 49408, "max_position_embeddings": 77},
            "vision_config": tower | {"image_size": 32, "patch_size": 16}}  # fmt: skip
    dump(root / "config.json", clip)
    means = {"image_mean": [0.48145466, 0.4578275, 0.40821073],
             "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
    dump(root / "preprocessor_config.json", means | {"size": {"shortest_edge": 32}})
    dump(root / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer"})
    dump(root / "special_tokens_map.json", {"bos_token": "<|startoftext|>"})
    dump(root / "vocab.json", {"a": 0, "b</w>": 1, "ab</w>": 2})
    (root / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (root / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    state = {"text_projection.weight": tensors.of(np.ones((8, 8), np.float32))}
    with (root / "model.safetensors").open("wb") as file:
        safe_tensors.write(file, state, {"format": "pt"})

    def read() -> None:
        tolerant(lambda: _all_values(identify, sources.open_source(root)))
        tolerant(lambda: processor_files.tokenizer_files(root, 32))
        tolerant(lambda: processor_files.crops_as_clip(root))
        tolerant(lambda: huggingface.check_files(root))
        tolerant(lambda: huggingface.size_of(sources.read_json(root / "config.json"), root))

    return read


def banks(root: Path) -> Read:
    """A bank on disk, complete and begun."""
    from cir_jax.bank import files

    made_of, arrays = {"model": "x"}, {"targets": ((4, 1, 8), np.float32)}
    for name in ("whole", "begun"):
        (root / name).mkdir()
        with files.Writer(root / name, arrays, made_of) as writer:
            writer.start(0, {"targets": 0})
            writer.add("targets", np.ones((4, 1, 8), np.float32))
            writer.commit(4, every=0.0)
            if name == "whole":
                writer.finish(4)

    def again() -> None:
        with files.Writer(root / "begun", arrays, made_of) as writer:
            writer.start(writer.done, dict.fromkeys(arrays, writer.done))

    def read() -> None:
        def whole() -> None:
            rows = files.load(root / "whole", made_of, arrays)
            if rows is not None:
                files.check(rows["targets"], [(0, 4)])

        tolerant(whole)
        tolerant(again)

    return read


def runs(root: Path) -> Read:
    """The records of a run: metrics, examples, captions' results, lists of checksums."""
    from cir_jax.evals.example import Example, Hit
    from cir_jax.generation import journal
    from cir_jax.runtime import checksums, metrics

    (root / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
    example = Example("1", "in red", "a.png", "b.png", "b", 1, (Hit("b", "b.png", 0.5),))
    dump(root / "examples.json", {"examples": [example.to_json()]})
    dump(root / "pairs_summary.json", {"made_of": {"a": 1}, "counts": {"pairs": 3}})
    (root / "step").mkdir()
    (root / "step" / "w.bin").write_bytes(b"xyz" * 9)
    checksums.write(root / "step", {"step": 1})

    def read() -> None:
        tolerant(lambda: metrics.read(root / "metrics.jsonl"))
        tolerant(lambda: journal.reuse(root / "pairs_summary.json", {"a": 1}, []))
        tolerant(lambda: (checksums.read(root / "step"), checksums.check(root / "step")))

    return read


READERS: dict[str, Callable[[Path], Read]] = {
    f.__name__: f
    for f in (
        *(fashioniq, cirr, circo, genecis, folder, generated, captions, importers, lists),
        *(containers, model_folders, banks, runs),
    )
} | own_files.READERS
