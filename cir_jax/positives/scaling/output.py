# SPDX-License-Identifier: Apache-2.0
"""The result: neutral JSON lines that training reads, and the released layouts on request."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError, nearest
from cir_jax.positives.scaling import journal
from cir_jax.positives.scaling.images import Pool
from cir_jax.positives.scaling.modify import Made

FILE = "triplets.jsonl"
SOURCE = "generated"
LAYOUTS = ("", "fashioniq", "cirr", "cc")


def check(config: Any) -> None:
    """Raises UserError for a layout that does not exist."""
    layout = config.output.layout
    if layout not in LAYOUTS:
        raise UserError(
            f"output.layout={layout!r} is unknown; there are: {', '.join(LAYOUTS[1:])}, or nothing."
            f"{nearest(layout, LAYOUTS)}"
        )


def run(config: Any, made: Sequence[Made], pool: Pool, workdir: Path) -> list[Path]:
    """Writes the triplets; the files that were written, `triplets.jsonl` first."""
    check(config)
    keep = config.rewrite.keep_templates
    journal.write_lines(workdir / FILE, _neutral(made, pool, workdir, keep))
    files = [workdir / FILE]
    layout, tag = config.output.layout, config.output.tag
    if layout:
        llm = "_llm" if config.rewrite.captioner else ""
        name = {
            "fashioniq": f"cap.extend_{tag}{llm}.train.json",
            "cirr": f"cap.rc2.train.extend_{tag}{llm}.json",
            "cc": "cap.rc2.train.cc.json" if tag == "cirr" else "cap.cc.train.json",
        }[layout]
        journal.write_array(workdir / name, _released(made, layout, pool, workdir))
        files.append(workdir / name)
    return files


def _neutral(
    made: Sequence[Made], pool: Pool, workdir: Path, keep_templates: bool
) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(made):
        reference, target = one.pair["reference"], one.pair["target"]
        texts = one.rewritten or one.texts
        if keep_templates and one.rewritten:
            texts = tuple(dict.fromkeys((*one.rewritten, *one.texts)))
        rest = {k: v for k, v in one.pair.items() if k not in ("reference", "target")}
        meta = {"caption1": one.captions[0], "caption2": one.captions[1], **rest}
        if one.rewritten:
            meta["llm_caption"] = one.rewritten[0]
        record = {
            "reference": reference, "target": target, "texts": list(dict.fromkeys(texts)),
            "source": SOURCE, "id": str(number), "meta": meta,
        }  # fmt: skip
        if pool.home:
            record["reference_path"] = _relative(pool.paths[reference], workdir)
            record["target_path"] = _relative(pool.paths[target], workdir)
        yield record


def _released(
    made: Sequence[Made], layout: str, pool: Pool, workdir: Path
) -> Iterator[dict[str, Any]]:
    """Records of the released files, field by field in their order."""
    for one in made:
        reference, target = one.pair["reference"], one.pair["target"]
        texts = list(one.texts)
        if layout == "fashioniq":
            record: dict[str, Any] = {"candidate": reference, "target": target, "captions": texts}
        elif layout == "cirr":
            record = {
                "reference": reference, "target_hard": target, "caption": texts, "pairid": 0,
                "img_set": {"members": ["xxx"]},
            }  # fmt: skip
        else:
            yield {
                "reference": str(pool.paths[reference]), "target": str(pool.paths[target]),
                "reference_name": reference, "target_name": target, "captions": texts,
            }  # fmt: skip
            continue
        record |= {"caption1": one.captions[0], "caption2": one.captions[1]}
        yield record | ({"llm_caption": one.rewritten[0]} if one.rewritten else {})


def _relative(path: Any, workdir: Path) -> str:
    """From the result's folder, so that both may be moved together; as it is on another disk."""
    try:
        return os.path.relpath(str(path), workdir)
    except ValueError:
        return os.path.abspath(str(path))
