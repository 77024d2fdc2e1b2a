# SPDX-License-Identifier: Apache-2.0
"""Step two: a short caption of every image, by a plug-in; duplicates share one.

Section 3.2 of arXiv 2404.11317. The prompts and numbers of words of its released captioner are in
configs/positives.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data.pixels import RELEASED
from cir_jax.errors import UserError
from cir_jax.generation import captioner as contract
from cir_jax.generation import generate_text, images, journal
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool

FILE, REFUSED = "captions.jsonl", "captions_refused.jsonl"
_FIELDS = ("category",)


def check_caption(config: ConfigDict) -> None:
    """Raises UserError for settings that fit no set of images."""
    generate_text.check_section(config.caption, "caption", _FIELDS)


def run(
    config: ConfigDict,
    pool: Pool,
    groups: Groups,
    workdir: Path,
    merged: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, str]:
    """The captions of the images that stand for their groups; some images may end without one.

    Args:
      config: see configs/positives.py.
      pool: the images.
      groups: which are the same.
      workdir: `captions.jsonl` grows here as replies come, with prompt, number of words, model,
        seed and date beside every caption; `captions_refused.jsonl` lists the images without.
      merged: where workers have asked for all captions, what was refused to them, as the list has
        it: name -> its record. What they have asked for is not asked for again.

    Returns:
      Image name -> caption, in the order of the groups.

    Raises:
      UserError: see `generate_text.generate`; or there are fewer than two captions.
    """
    nothing = generate_text.Shared(lambda key: False, [workdir / FILE])
    asked, written = ask(config, pool, groups, workdir, None if merged is None else nothing)
    known = merged or {}
    for name in asked.values():
        if name in known and name not in written.texts:
            written.refused.setdefault(name, known[name])
    generate_text.list_refused(workdir / REFUSED, written.refused, "image")
    if written.refused:
        progress.say(
            f"warning: {len(written.refused)} of {len(asked)} images have no caption "
            f"({generate_text.reasons(written.refused)}); they are listed in "
            f"{workdir / REFUSED} and left out. {generate_text.again(merged)}"
        )
    if len(written.texts) < 2:
        raise UserError(
            f"{len(written.texts)} of {len(asked)} images have a caption, and pairs need two "
            f"({generate_text.reasons(written.refused)}); see {workdir / REFUSED}"
        )
    return by_name(asked, written)


def by_name(asked: Mapping[str, str], written: generate_text.Texts) -> dict[str, str]:
    """Image that stands for its group -> caption, in the order of the groups; see `ask`."""
    return {name: written.texts[n] for name, n in asked.items() if n in written.texts}


def ask(
    config: ConfigDict,
    pool: Pool,
    groups: Groups,
    workdir: Path,
    shared: generate_text.Shared | None = None,
) -> tuple[dict[str, str], generate_text.Texts]:
    """Asks for the captions that are not there, or for a part of them.

    Args:
      config, pool, groups, workdir: see `run`.
      shared: the part that is asked for; None for all.

    Returns:
      Image that stands for its group -> image of the group that is asked for; and the texts.

    Raises:
      UserError: see `generate_text.generate`.
    """
    check_caption(config)
    section, loading = config.caption, images.loading_of(config)
    captioner = build_captioner(section, config.seed, pool, groups)
    asked = {group[0]: _asked(captioner, group) for group in groups.members}
    written = generate_text.generate(
        *(workdir / FILE, captioner, _requests(captioner, config, pool, asked), section),
        key="image",
        seed=config.seed,
        title="captioning",
        images=generate_text.RequestImages(
            {n: asked[group[0]] for group in groups.members for n in group},
            groups.pixels,
            "" if loading == RELEASED else loading.fingerprint(),
        ),
        shared=None if generate_text.is_free(captioner) else shared,
    )
    return asked, written


def was_released(file: Path) -> bool:
    """Whether captions were begun before there was a choice of how images are opened."""
    first = next(journal.read(file), None)
    return first is not None and first[1].keys().isdisjoint(("pixels", generate_text.LOADING))


def _asked(captioner: contract.Captioner, group: tuple[str, ...]) -> str:
    """Which of some duplicates is captioned: the first, or one that has a caption already."""
    has = getattr(captioner, "has", None)
    return next(filter(has, group), group[0]) if has else group[0]


def _requests(
    captioner: contract.Captioner, config: ConfigDict, pool: Pool, asked: dict[str, str]
) -> dict[str, contract.Request]:
    """A request for every image that stands for its group, under the name that is asked for."""
    section, loading = config.caption, images.loading_of(config)
    prompted = getattr(captioner, "prompted", True)
    if prompted and generate_text.names_field(section.prompt, "category"):
        lost = next((n for n in asked if n not in pool.categories), None)
        if lost is not None:
            raise UserError(
                f"caption.prompt names {{category}}, but image {lost!r} has none; use a prompt "
                "without"
            )
    prompts: dict[str, str] = {}  # one text for all requests that are the same
    requests = {}
    for name, n in asked.items():
        category = pool.categories.get(name, "")
        if category not in prompts:
            filled = section.prompt.format(words=section.words, category=category)
            prompts[category] = filled if prompted else ""
        requests[n] = contract.Request(n, prompts[category], pool.paths[n], loading=loading)
    return requests


def build_captioner(
    section: ConfigDict, seed: int, pool: Pool, groups: Groups
) -> contract.Captioner:
    """The captioner of a config; some sets of images bring their own captions."""
    if section.captioner == "texts" and pool.texts and not section.file:
        section = section.copy_and_resolve_references()
        with section.unlocked():
            section.file = pool.texts
            section.unknown = "ignore"  # duplicates are not asked for
    names = [name for group in groups.members for name in group] + list(pool.left_out)
    return contract.build(section, "caption", seed, names)
