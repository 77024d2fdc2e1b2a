# SPDX-License-Identifier: Apache-2.0
"""The part of a file that holds a model, by names without what wrappers put before them.

`torch.compile`, DataParallel, Lightning, PEFT and whoever keeps a CLIP in an attribute all save the
tensors under longer names, one wrapper within another; and one file may hold a model twice, as
student and teacher or with its moving average. What lies below a prefix is tried as a state dict of
its own. A prefix that every name has is taken off where the rest fits a layout. Where two parts
fit, none is chosen: `FILE::PART` names one.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cir_jax.convert.containers.tensors import Tensor
from cir_jax.convert.layout import Found, Layout
from cir_jax.convert.sources import PART, Source
from cir_jax.errors import UserError

# Segments of names that only wrappers of PyTorch make, wherever they stand.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_ALSO = _WRAPPERS | {"module"}  # a model may have an attribute of that name: the second try
_DEEPEST = 8  # segments of a prefix
_LISTED = 3  # names that a message shows

# Keys under which anybody keeps a state dict; others are those of one project, which reads its own.
_ANYBODYS = ("", "state_dict", "model", "module", "params")

Tensors = Mapping[str, Tensor]


class Several(UserError):
    """More than one part of a file fits."""


@dataclass(frozen=True)
class _Fit:
    """A part of a state dict that a layout finds itself in.

    Attributes:
      layout, found: what it is; `found` knows the group of the file and the tensors.
      prefix: of the names in the state dict, "" for all of it.
      beside: names of the same state dict that lie beside it.
      own: whether the layout is told by the key of the file, as those of released runs are.
    """

    layout: Layout
    found: Found
    prefix: str
    beside: tuple[str, ...]
    own: bool

    @property
    def part(self) -> str:
        """What follows `FILE::` to name it; "" for the file as it is."""
        return ".".join(filter(None, (self.found.group, self.prefix.rstrip("."))))


def find(source: Source, layouts: Sequence[Layout]) -> tuple[Layout, Found] | None:
    """The layout of the part of `source` that one of `layouts` finds itself in.

    Args:
      source: a file, as it was opened.
      layouts: of a model; the first that finds itself in a part reads it.

    Returns:
      None where no part fits, or names lie beside the only one that does. `Found.tensors` are those
      of the part, under the names that the layout knows.

    Raises:
      Several: several parts fit: they are named.
      UserError: what a layout says of a file that is its own, and cannot be read.
    """
    for layout in layouts:  # a file whose metadata say its layout: names are what they are
        if layout.rules is None and (found := layout.find(source)):
            return layout, found
    fits = _fits(source, layouts)
    if len(own := [fit for fit in fits if fit.own]) == 1:
        fits = own
    if len(fits) > 1:
        said = [f"{fit.part or 'the names without a prefix'} ({_size(fit)})" for fit in fits]
        places = [f"{source.place}{PART}{fit.part}" for fit in fits if fit.part]
        raise Several(
            f"{source.place} holds {len(fits)} sets of weights that fit, and does not say which is "
            f"the model: {' and '.join(said)}. Name one: {' or '.join(places)}"
        )
    if not fits or fits[0].beside:
        return None
    return fits[0].layout, fits[0].found


def hint(source: Source, layouts: Sequence[Layout]) -> str:
    """What to do about the only part that fits, where names lie beside it; "" for nothing."""
    fits = _fits(source, layouts)
    if len(fits) != 1 or not fits[0].beside:
        return ""
    (fit,) = fits
    more = f" and {len(fit.beside) - _LISTED} more" if len(fit.beside) > _LISTED else ""
    return (
        f"What lies below {fit.part!r} is {fit.layout.about}, but "
        f"{', '.join(map(repr, fit.beside[:_LISTED]))}{more} lie beside it: to read that part "
        f"alone, give {source.place}{PART}{fit.part}. "
    )


def _fits(source: Source, layouts: Sequence[Layout]) -> list[_Fit]:
    """The parts of a file that fit, of each state dict those of shorter prefixes first."""
    layouts = [layout for layout in layouts if layout.rules is not None]
    found = []
    for group, held in source.groups.items():
        inside: list[_Fit] = []
        trouble = None
        names = [_without(held, _WRAPPERS), _without(held, _ALSO)]
        for tried in names[: 1 if names[0].keys() == names[1].keys() else 2]:
            try:
                inside = inside or list(_of_names(source, group, tried, layouts))
            except UserError as error:
                trouble = trouble or error
        if trouble and not inside:
            raise trouble
        found += inside
    return found


def _of_names(
    source: Source, group: str, names: Tensors, layouts: Sequence[Layout]
) -> Iterator[_Fit]:
    fits: list[_Fit] = []
    for prefix, below in _parts(names).items():
        within = [fit for fit in fits if prefix.startswith(fit.prefix)]
        # A part of a model is no second model, unless it is one of the same layout.
        known = [within[0].layout] if within else layouts
        beside = tuple(n for n in names if not n.startswith(prefix))
        try:
            fitting = _first(source, group, below, prefix, known)
        except UserError:
            if beside or within:
                continue  # it only looks like one
            raise
        if fitting:
            layout, found = fitting
            own = found.group == group not in _ANYBODYS and not prefix
            found = dataclasses.replace(
                found,
                group=group,
                tensors=below if found.tensors is None else found.tensors,
                renamed=_renamed(source.groups[group], below),
            )
            fits.append(_Fit(layout, found, prefix, beside, own))
            yield fits[-1]


def _first(
    source: Source, group: str, tensors: Tensors, prefix: str, layouts: Sequence[Layout]
) -> tuple[Layout, Found] | None:
    """The first layout of a part: under the key it has in the file, or as a file of its own."""
    # Of a module that holds OpenAI's archive it is not known what it computes.
    container = "torch" if prefix else source.container
    for key in dict.fromkeys((group, "")):
        alone = dataclasses.replace(source, groups={key: dict(tensors)}, container=container)
        for layout in layouts:
            if found := layout.find(alone):
                return layout, found
    return None


def _parts(names: Tensors) -> dict[str, dict[str, Tensor]]:
    """Prefix -> the tensors below it, without it; the shortest first, which is none."""
    parts: dict[str, dict[str, Tensor]] = {"": dict(names)}
    for name, tensor in names.items():
        end = -1
        for _ in range(_DEEPEST):
            end = name.find(".", end + 1)
            if end < 0:
                break
            parts.setdefault(name[: end + 1], {})[name[end + 1 :]] = tensor
    return dict(sorted(parts.items(), key=lambda item: item[0].count(".")))


def _without(held: Tensors, segments: frozenset[str]) -> Tensors:
    """The tensors by names without these segments; as they are where two would have one name."""
    shorter = {
        ".".join(part for part in name.split(".") if part not in segments): tensor
        for name, tensor in held.items()
    }
    return shorter if len(shorter) == len(held) else held


def _renamed(held: Tensors, read: Tensors) -> str:
    """A name in the file and what it is read as, in words; "" where they are the same."""
    by_tensor = {id(tensor): name for name, tensor in held.items()}
    for name, tensor in read.items():
        if (before := by_tensor[id(tensor)]) != name:
            return f"{before!r} is read as {name!r}"
    return ""


def _size(fit: _Fit) -> str:
    return f"{len(fit.found.tensors or ())} tensors"
