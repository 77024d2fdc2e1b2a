# SPDX-License-Identifier: Apache-2.0
"""Step two: a short caption of every image, by a plug-in; duplicates share one.

Section 3.2 of arXiv 2404.11317. The prompts and numbers of words of its released captioner are in
configs/positives.py.
"""

from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives.scaling import writing
from cir_jax.positives.scaling.captioners import contract
from cir_jax.positives.scaling.dedupe import Groups
from cir_jax.positives.scaling.images import Pool
from cir_jax.runtime import progress

FILE, REFUSED = "captions.jsonl", "captions_refused.jsonl"
_FIELDS = ("category",)


def run(config: Any, pool: Pool, groups: Groups, workdir: Path) -> dict[str, str]:
    """Captions of the images that stand for their groups, as far as there are good ones.

    Args:
      config: see configs/positives.py.
      pool: the images.
      groups: which are the same.
      workdir: `captions.jsonl` grows here as replies come, with prompt, number of words, model,
        seed and date beside every caption; `captions_refused.jsonl` lists the images without.

    Returns:
      Image name -> caption, in the order of the groups.

    Raises:
      UserError: see `writing.write`; or there are fewer than two captions.
    """
    section = config.caption
    names = [group[0] for group in groups.members]
    if "{category}" in section.prompt and not all(n in pool.categories for n in names):
        lost = next(n for n in names if n not in pool.categories)
        raise UserError(
            f"caption.prompt names {{category}}, but image {lost!r} has none; use a prompt without"
        )
    writing.check(section, "caption", _FIELDS)
    captioner = captioner_of(section, config.seed, pool, groups)
    prompted = getattr(captioner, "prompted", True)
    wanted = {
        name: contract.Request(
            name,
            section.prompt.format(words=section.words, category=pool.categories.get(name, ""))
            if prompted
            else "",
            pool.paths[name],
        )
        for name in names
    }
    written = writing.write(
        *(workdir / FILE, captioner, wanted, section),
        key="image",
        seed=config.seed,
        title="captioning",
    )
    writing.list_refused(workdir / REFUSED, written.refused, "image")
    if written.refused:
        progress.say(
            f"warning: {len(written.refused)} of {len(names)} images have no caption "
            f"({writing.reasons(written.refused)}); they are listed in {workdir / REFUSED} and "
            "left out. The same command asks for them again"
        )
    if len(written.texts) < 2:
        raise UserError(
            f"{len(written.texts)} of {len(names)} images have a caption, and pairs need two "
            f"({writing.reasons(written.refused)}); see {workdir / REFUSED}"
        )
    return {name: written.texts[name] for name in names if name in written.texts}


def captioner_of(section: Any, seed: int, pool: Pool, groups: Groups) -> Any:
    """The captioner of a config; some sets of images bring their own captions."""
    if section.captioner == "texts" and pool.texts and not section.file:
        section = section.copy_and_resolve_references()
        with section.unlocked():
            section.file = pool.texts
            section.unknown = "ignore"  # duplicates are not asked for
    names = [name for group in groups.members for name in group]
    return contract.load(section.captioner).Captioner.from_config(section, seed, names)
