# SPDX-License-Identifier: Apache-2.0
"""Step four: two captions become the text that leads from one image to the other.

Templates are those of section 3.2 of arXiv 2404.11317 (ids 0, 1 and 2 of its released code, see
configs/positives.py); captions go in as they are. A text over the tokenizer's context becomes the
target's caption alone, as in the released generator. Rewriting by a language model is an option;
the same rule holds for what it writes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.data import tokens
from cir_jax.errors import UserError
from cir_jax.generation import captioner as contract
from cir_jax.generation import generate_text

REWRITES, REFUSED = "rewrites.jsonl", "rewrites_refused.jsonl"
_FIELDS = ("reference", "target")


@dataclass(frozen=True)
class Generated:
    """One generated triplet.

    Attributes:
      pair: its entry of `pairs.jsonl`.
      captions: of the reference and of the target.
      texts: template texts.
      rewritten: texts of a language model, () if none was asked.
    """

    pair: dict[str, Any]
    captions: tuple[str, str]
    texts: tuple[str, ...]
    rewritten: tuple[str, ...] = ()


def run(
    config: ConfigDict,
    pairs: Sequence[dict[str, Any]],
    captions: dict[str, str],
    workdir: Path,
    merged: Mapping[str, dict[str, Any]] | None = None,
) -> list[Generated]:
    """The triplets of `pairs`.

    Args:
      config: see configs/positives.py.
      pairs: see `pair.run`.
      captions: image name -> caption.
      workdir: where `rewrites.jsonl` grows, if texts are rewritten.
      merged: where workers have asked for all texts, what was refused to them, see `caption.run`.

    Returns:
      One for each pair; where rewriting is asked for and failed, the pair is left out and listed,
      unless the template texts are kept.

    Raises:
      UserError: a template cannot be filled in, or what `generate_text.generate` finds.
    """
    check_modify(config)
    made = _filled(config, pairs, captions)
    if config.rewrite.captioner:
        made = _rewritten(made, config, workdir, merged)
    return _fitted(made, config.modify.context)


def ask(
    config: ConfigDict,
    pairs: Sequence[dict[str, Any]],
    captions: dict[str, str],
    workdir: Path,
    shared: generate_text.Shared,
) -> generate_text.Texts:
    """Asks for a part of the rewritten texts, see `generate_text.generate`."""
    return _asked(_filled(config, pairs, captions), config, workdir, shared)


def _filled(
    config: ConfigDict, pairs: Sequence[dict[str, Any]], captions: dict[str, str]
) -> list[Generated]:
    """The texts of the templates."""
    templates = tuple(config.modify.templates)
    made = []
    for pair in pairs:
        both = captions[pair["reference"]], captions[pair["target"]]
        texts = tuple(t.format(reference=both[0], target=both[1]) for t in templates)
        made.append(Generated(pair, both, texts))
    return made


def check_modify(config: ConfigDict) -> None:
    """Raises UserError if a template or the prompt of a rewriter cannot be filled in."""
    templates = tuple(config.modify.templates)
    if not templates:
        raise UserError("modify.templates is empty; give at least one, e.g. '{target}'")
    for template in templates:
        try:
            filled = template.format(reference="\0", target="\1")
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"modify.templates: {template!r} cannot be filled in ({error!r}); it may name "
                "{reference} and {target}"
            ) from None
        if "\1" not in filled:
            raise UserError(
                f"modify.templates: {template!r} does not name {{target}}; write templates with "
                "commas as modify.templates=('a','b')"
            )
    section = config.rewrite
    if section.captioner:
        generate_text.check_section(section, "rewrite", _FIELDS)
    elif section.texts != 1 or section.keep_templates:
        raise UserError(
            f"rewrite.texts={section.texts}, rewrite.keep_templates={section.keep_templates}, but "
            "rewrite.captioner is empty, which rewrites nothing; set it, e.g. to server"
        )


def _fitted(made: list[Generated], context: int) -> list[Generated]:
    """Texts over `context` tokens, start and end included, become the target's caption."""
    long = _over(context, (t for one in made for t in (*one.texts, *one.rewritten)))
    if not long:
        return made
    replaced = sum(t in long for one in made for t in (*one.texts, *one.rewritten))
    progress.say(f"{replaced} texts over {context} tokens became the target's caption")
    stuck = _over(context, {one.captions[1] for one in made})
    if stuck:
        progress.say(
            f"warning: {len(stuck)} captions are over {context} tokens themselves; training takes "
            "them with data.on_long=truncate"
        )

    def fitting(one: Generated, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one.captions[1] if t in long else t for t in texts)

    return [
        replace(one, texts=fitting(one, one.texts), rewritten=fitting(one, one.rewritten))
        for one in made
    ]


def _over(context: int, texts: Iterable[str]) -> set[str]:
    """Those of more than `context` tokens."""
    distinct = list(dict.fromkeys(texts))
    tokenizer = tokens.load("clip")
    long: set[str] = set()
    for start in range(0, len(distinct), 4096):
        part = distinct[start : start + 4096]
        encoded = tokenizer.encode(part)
        long |= {t for t, ids in zip(part, encoded, strict=True) if len(ids) > context}
    return long


def _asked(
    made: list[Generated],
    config: ConfigDict,
    workdir: Path,
    shared: generate_text.Shared | None = None,
) -> generate_text.Texts:
    section = config.rewrite
    captioner = contract.build(section, "rewrite", config.seed, [])
    wanted = dict(_requests(made, section))
    return generate_text.generate(
        *(workdir / REWRITES, captioner, wanted, section),
        key="pair",
        seed=config.seed,
        title="rewriting",
        shared=shared,
    )


def _rewritten(
    made: list[Generated],
    config: ConfigDict,
    workdir: Path,
    merged: Mapping[str, dict[str, Any]] | None,
) -> list[Generated]:
    section = config.rewrite
    nothing = generate_text.Shared(lambda key: False, [workdir / REWRITES])
    written = _asked(made, config, workdir, None if merged is None else nothing)
    if merged:
        for key, _ in _requests(made, section):
            if key in merged and key not in written.texts:
                written.refused.setdefault(key, merged[key])
    generate_text.list_refused(workdir / REFUSED, written.refused, "pair")
    result = []
    for one in made:
        keys = [_key(one, n) for n in range(section.texts)]
        texts = tuple(dict.fromkeys(written.texts[k] for k in keys if k in written.texts))
        if texts or section.keep_templates:
            result.append(replace(one, rewritten=texts))
    if written.refused:
        progress.say(
            f"warning: {len(written.refused)} texts were refused "
            f"({generate_text.reasons(written.refused)}), listed in {workdir / REFUSED}; "
            f"{len(made) - len(result)} pairs without a text are left out. "
            f"{generate_text.again(merged)}"
        )
    if not result:
        raise UserError(f"no text was rewritten; see {workdir / REFUSED}")
    return result


def _requests(made: list[Generated], section: ConfigDict) -> Iterator[tuple[str, contract.Request]]:
    for one in made:
        prompt = section.prompt.format(
            reference=one.captions[0].rstrip(". "),
            target=one.captions[1].rstrip(". "),
            words=section.words,
        )
        for number in range(section.texts):
            key = _key(one, number)
            yield key, contract.Request(key, prompt, varied=number > 0)


def _key(one: Generated, number: int) -> str:
    return "\t".join((one.pair["reference"], one.pair["target"], str(number)))
