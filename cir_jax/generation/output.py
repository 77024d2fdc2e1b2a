# SPDX-License-Identifier: Apache-2.0
"""The result: neutral JSON lines that training reads, and the released layouts on request."""

import os
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax.datasets.shards import TarImage
from cir_jax.errors import UserError
from cir_jax.generation import journal
from cir_jax.generation.images import Pool
from cir_jax.generation.modify import Generated

FILE = "triplets.jsonl"


def check_output(config: ConfigDict) -> None:
    """Raises UserError where the triplets would have no name."""
    if not config.output.source:
        raise UserError("output.source is empty; name the source, e.g. generated")


def run(config: ConfigDict, made: Sequence[Generated], pool: Pool, workdir: Path) -> list[Path]:
    """Writes the triplets; the files that were written, `triplets.jsonl` first.

    Raises:
      UserError: the disk is full, or the layout needs files where the images are packed.
    """
    check_output(config)
    rewriting = bool(config.rewrite.captioner)
    journal.write_lines(workdir / FILE, _neutral(config, made, pool, workdir))
    files = [workdir / FILE]
    layout, tag = config.output.layout, config.output.tag
    if layout:
        llm = "_llm" if rewriting else ""
        name = {
            "fashioniq": f"cap.extend_{tag}{llm}.train.json",
            "cirr": f"cap.rc2.train.extend_{tag}{llm}.json",
            "cc": "cap.rc2.train.cc.json" if tag == "cirr" else "cap.cc.train.json",
        }[layout]
        journal.write_array(workdir / name, _released(made, layout, pool, rewriting))
        files.append(workdir / name)
    return files


def training_texts(one: Generated, keep_templates: bool) -> list[str]:
    """The distinct texts that training draws from."""
    chosen = (*one.rewritten, *one.texts) if keep_templates else one.rewritten or one.texts
    return list(dict.fromkeys(chosen))


def _neutral(
    config: ConfigDict, made: Sequence[Generated], pool: Pool, workdir: Path
) -> Iterator[dict[str, Any]]:
    rewriting, keep = bool(config.rewrite.captioner), config.rewrite.keep_templates
    relative = cache(partial(_relative_folder, workdir))

    def place(path: Any) -> str:
        folder, name = os.path.split(os.path.abspath(str(path)))
        return os.path.join(relative(folder), name)

    for number, one in enumerate(made):
        reference, target = one.pair["reference"], one.pair["target"]
        rest = {k: v for k, v in one.pair.items() if k not in ("reference", "target")}
        meta = {"caption1": one.captions[0], "caption2": one.captions[1], **rest}
        record = {
            "reference": reference, "target": target, "texts": training_texts(one, keep),
            "source": config.output.source, "id": str(number),
            "meta": meta | _llm_caption(one, rewriting),
        }  # fmt: skip
        if pool.home:
            record["reference_path"] = place(pool.paths[reference])
            record["target_path"] = place(pool.paths[target])
        yield record


def _released(
    made: Sequence[Generated], layout: str, pool: Pool, rewriting: bool
) -> Iterator[dict[str, Any]]:
    """Records of the released files, field by field in their order."""
    for one in made:
        reference, target = one.pair["reference"], one.pair["target"]
        texts = list(one.texts)
        if layout == "cc":
            record: dict[str, Any] = {
                "reference": _absolute(pool.paths[reference]),
                "target": _absolute(pool.paths[target]),
                "reference_name": reference, "target_name": target, "captions": texts,
            }  # fmt: skip
        elif layout == "cirr":
            record = {
                "reference": reference, "target_hard": target, "caption": texts, "pairid": 0,
                "img_set": {"members": ["xxx"]},
            }  # fmt: skip
        else:
            record = {"candidate": reference, "target": target, "captions": texts}
        if layout != "cc":
            record |= {"caption1": one.captions[0], "caption2": one.captions[1]}
        yield record | _llm_caption(one, rewriting)


def _llm_caption(one: Generated, rewriting: bool) -> dict[str, str]:
    """The field of a rewritten text, in all records or in none: readers ask for it in each.

    Where rewriting failed and the template texts are kept, it is the first of them.
    """
    return {"llm_caption": (one.rewritten or one.texts)[0]} if rewriting else {}


def _absolute(path: Any) -> str:
    if not isinstance(path, str | TarImage):
        raise UserError(
            f"output.layout=cc names images by their files, and {path} is packed in another; use "
            "another output.layout, or none"
        )
    return os.path.abspath(str(path))


def _relative_folder(workdir: Path, folder: str) -> str:
    """The relative path from the result to a folder, so that both may be moved together.

    `folder` as it is, if it is on another drive.
    """
    start, end = os.path.realpath(workdir), os.path.realpath(folder)
    try:
        plain = os.path.relpath(folder, os.path.abspath(workdir))
        # ".." behind a linked folder is not the folder that holds the link.
        same = os.path.realpath(os.path.join(start, plain)) == end
        return plain if same else os.path.relpath(end, start)
    except ValueError:
        return folder
