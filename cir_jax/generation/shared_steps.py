# SPDX-License-Identifier: Apache-2.0
"""The steps of one of many workers, and the pass that merges what all have written.

Hashing, captioning and rewriting are maps over images or pairs: each worker does those that are its
own by name. In between all of them need what all have found, so each waits until all have. What is
drawn is drawn by worker 1, where the texts of pairs are rewritten, or by the merge.

    hash own images -> all wait -> caption own images
        [-> all wait -> worker 1 pairs, all wait -> rewrite own texts]      merge -> triplets

Every worker makes the same groups of the same hashes, so the same image of a group is captioned as
by one process, by the one worker whose work it is. Where one was killed, the first that misses what
it should have done takes its work over, to the end; after its own last step each looks for such.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.generation import (
    caption,
    dedupe,
    generate_text,
    image_hashes,
    images,
    journal,
    modify,
    pair,
)
from cir_jax.generation import captioner as contract
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool
from cir_jax.generation.trained import OpenRun
from cir_jax.generation.workers import Share, Workers, fingerprint, settings

HASHED, CAPTIONED, PAIRED, REWRITTEN = "hashed", "captioned", "paired", "rewritten"
_AT_ONCE = 4096  # records that are added to a journal together
_RACE = 1.0  # seconds after which of two processes that take a worker over at once one is told so

Part = Callable[[int], list[str]]  # does a step of a worker; the files that it wrote in its folder
Refused = dict[str, dict[str, Any]]


class _Process:
    """A process that does the work of some workers, and takes over that of those that were killed.

    Args:
      workers: all of them.
      share: whose work it does from the beginning.
      stack: holds the right to do it, to the end.

    Attributes:
      checks: of each worker whose work it does, what checks that no other process has taken it.
      folder: for files that are of no worker.

    Raises:
      UserError: another process does the work of one.
    """

    def __init__(self, workers: Workers, share: Share, stack: ExitStack):
        self.workers, self._share, self._stack = workers, share, stack
        self.checks = {n: stack.enter_context(workers.held(n)) for n in share.numbers}
        self.folder = workers.folder(share.numbers[0])

    def do(self, step: str, about: Mapping[str, Any], part: Part, only: Sequence[int] = ()) -> None:
        """Does a step of each worker whose work it does, or `only` of some of these."""
        for number in [n for n in self.checks if not only or n in only]:
            self.checks[number]()  # before anything is asked for
            written = part(number)
            self.checks[number]()
            self.workers.mark(number, step, about, written)

    def wait(
        self,
        step: str,
        about: Mapping[str, Any],
        part: Part,
        only: Sequence[int] = (),
        leave: bool = False,
    ) -> None:
        """See `Workers.wait_for`; does the step of workers that were killed."""

        def take_over(number: int) -> None:
            if self._took(number):
                progress.say(f"worker {number} was killed: its work is taken over")
                self.do(step, about, part, [number])

        self.workers.wait_for(
            step, about, self._share, numbers=only, take_over=take_over, leave=leave
        )

    def _took(self, number: int) -> bool:
        """Whether this process now does the work of a worker, and no other."""
        with ExitStack() as held:
            try:
                check = held.enter_context(self.workers.held(number))
                time.sleep(_RACE)  # another may have begun to take it at this moment
                check()
            except UserError:  # it lives, or another was faster
                return False
            self.checks[number] = check
            self._stack.enter_context(held.pop_all())
        return True


def work(config: ConfigDict, share: Share, open_run: OpenRun) -> dict[str, int]:
    """Does the work of one worker, or of several.

    Args:
      config: a locked config of configs/positives.py, `data.loading` decided.
      share: whose work.
      open_run: opens `pair.run`, where worker 1 needs it.

    Returns:
      What is there of all workers: {"images", "distinct", "captions"}; captions those so far.

    Raises:
      UserError: input that cannot be used, another process does this work, or the folder was begun
        by other workers. What is done is kept.
      Stopped: other workers have not done theirs, and show no sign of life.
    """
    workers = Workers(Path(config.workdir), share.count)
    pair.check_place(config.pair.file, workers.workdir)  # which the merge will write
    with ExitStack() as stack:
        process = _Process(workers, share, stack)
        workers.begin(share, config)
        pool, groups = _grouped(config, process)
        progress.say(f"{len(pool.paths)} images, {len(groups.members)} different ones")
        captions = _captioned(config, pool, groups, process)
        if config.rewrite.captioner:
            captions = _rewritten(config, pool, groups, process, open_run)
    return {"images": len(pool.paths), "distinct": len(groups.members), "captions": len(captions)}


def _grouped(config: ConfigDict, process: _Process) -> tuple[Pool, Groups]:
    """Hashes own images, and groups all when they are hashed."""
    pool, workers = images.read(config), process.workers
    if config.dedupe.optimized:
        pool, groups = dedupe.run(config, pool, process.folder)
        if not images.are_opened(config):
            return pool, groups
        # Each worker looks at all files: what cannot be used must be the same for all of them.
        return dedupe.usable(config, pool, groups, process.folder)
    near, loading = config.dedupe.near >= 0, images.loading_of(config)

    def hashed(number: int) -> list[str]:
        mine = {name: path for name, path in pool.paths.items() if workers.of(name) == number}
        folder = workers.folder(number)
        hashes = image_hashes.hash_images(
            *(mine, folder / dedupe.HASHES, near, config.data.threads, loading)
        )
        dedupe.judged(config, mine, hashes, folder)
        return [dedupe.HASHES]

    about = _of_hashes(config, pool)
    process.do(HASHED, about, hashed)
    process.wait(HASHED, about, hashed)
    files = workers.journals(dedupe.HASHES)[1:]
    hashes = image_hashes.gathered(pool.paths, files, near, loading)
    return dedupe.grouped(config, pool, hashes, process.folder)


def _captioned(config: ConfigDict, pool: Pool, groups: Groups, process: _Process) -> dict[str, str]:
    """Asks for own captions; the texts of all that are there then.

    Where texts are rewritten, captions of all workers are waited for.
    """
    if _is_free(config):  # every process that needs them looks them all up
        return {}
    texts: dict[str, str] = {}

    def captioned(number: int) -> list[str]:
        folder = process.workers.folder(number)
        part = _part(process, number, caption.FILE)
        asked, written = caption.ask(config, pool, groups, folder, part)
        generate_text.list_refused(folder / caption.REFUSED, written.refused, "image")
        _tell_refused(written, folder / caption.REFUSED)
        texts.update(caption.by_name(asked, written))
        return [caption.FILE, caption.REFUSED]

    about = _of_captions(config, groups)
    process.do(CAPTIONED, about, captioned)
    process.wait(CAPTIONED, about, captioned, leave=not config.rewrite.captioner)
    return texts


def _rewritten(
    config: ConfigDict, pool: Pool, groups: Groups, process: _Process, open_run: OpenRun
) -> dict[str, str]:
    """Asks for own rewritten texts; the captions."""
    workers = process.workers
    nothing = generate_text.Shared(lambda key: False, workers.journals(caption.FILE))
    captions = caption.by_name(*caption.ask(config, pool, groups, process.folder, nothing))

    def paired(number: int) -> list[str]:
        pair.run(config, pool, groups, list(captions), workers.folder(number), open_run)
        return [pair.FILE]

    about = _of_pairs(config, captions)
    process.do(PAIRED, about, paired, (1,))
    process.wait(PAIRED, about, paired, (1,))
    pairs = _pairs(workers)

    def rewritten(number: int) -> list[str]:
        folder = workers.folder(number)
        part = _part(process, number, modify.REWRITES)
        written = modify.ask(config, pairs, captions, folder, part)
        generate_text.list_refused(folder / modify.REFUSED, written.refused, "pair")
        _tell_refused(written, folder / modify.REFUSED)
        return [modify.REWRITES, modify.REFUSED]

    about = _of_rewrites(config, pairs)
    process.do(REWRITTEN, about, rewritten)
    process.wait(REWRITTEN, about, rewritten, leave=True)
    return captions


def merge_hashes(config: ConfigDict, pool: Pool, workers: Workers) -> None:
    """Takes the hashes of all workers into the work folder.

    Raises:
      UserError: the workers had other settings, or some have not hashed their images.
    """
    workers.check(config)
    if config.dedupe.optimized:
        return
    workers.check_done(HASHED, _of_hashes(config, pool))
    _merge(workers, dedupe.HASHES, "image", pool.paths)


def merge_captions(config: ConfigDict, groups: Groups, workers: Workers) -> Refused | None:
    """Takes the captions of all workers into the work folder.

    Returns:
      What was refused to them; None where captions are looked up, which no worker does.

    Raises:
      UserError: some have not captioned their images.
    """
    if _is_free(config):
        return None
    workers.check_done(CAPTIONED, _of_captions(config, groups))
    _merge(workers, caption.FILE, "image", [n for group in groups.members for n in group])
    return _refused(workers, caption.REFUSED, "image")


def merge_rewrites(
    config: ConfigDict, captions: Mapping[str, str], workers: Workers
) -> tuple[list[dict[str, Any]], Refused]:
    """Takes pairs and rewritten texts of all workers into the work folder.

    Returns:
      The pairs, and what was refused.

    Raises:
      UserError: worker 1 has not paired the images, or some have not rewritten their texts.
    """
    workers.check_done(PAIRED, _of_pairs(config, captions), (1,))
    pairs = _pairs(workers)
    workers.check_done(REWRITTEN, _of_rewrites(config, pairs))
    journal.write_lines(workers.workdir / pair.FILE, pairs)
    _merge(workers, modify.REWRITES, "pair", ())
    return pairs, _refused(workers, modify.REFUSED, "pair")


def _merge(workers: Workers, name: str, key: str, order: Iterable[str]) -> None:
    """Adds the last record of each key to the journal of the work folder, unless it is there.

    In the order of `order`, as one process works things off; others behind, worker by worker.
    """
    main, *others = workers.journals(name)
    found: dict[str, str] = {}  # as text, which takes a third of the memory
    for file in others:
        found |= {
            _key(record, key, where): json.dumps(record) for where, record in journal.read(file)
        }
    with journal.Journal(main, sync_every=_AT_ONCE) as kept:
        for where, record in kept.records():
            one = _key(record, key, where)
            if found.get(one) == json.dumps(record):
                del found[one]
        wanted = [n for n in order if n in found]
        first = set(wanted)
        wanted += [n for n in found if n not in first]
        for start in range(0, len(wanted), _AT_ONCE):
            kept.add(*(json.loads(found[n]) for n in wanted[start : start + _AT_ONCE]))


def _key(record: Mapping[str, Any], key: str, where: str) -> str:
    found = record.get(key)
    if not isinstance(found, str):
        raise UserError(f"{where} has no {key}; remove that line")
    return found


def _refused(workers: Workers, name: str, key: str) -> Refused:
    """What was refused to any worker: key -> the rest of its record."""
    found: Refused = {}
    for file in workers.journals(name)[1:]:
        for where, record in journal.read(file):
            found[_key(record, key, where)] = {k: v for k, v in record.items() if k != key}
    return found


def _part(process: _Process, number: int, name: str) -> generate_text.Shared:
    workers = process.workers
    return generate_text.Shared(
        lambda key: workers.of(key) == number, workers.journals(name), process.checks[number]
    )


def _pairs(workers: Workers) -> list[dict[str, Any]]:
    return [record for _, record in journal.read(workers.folder(1) / pair.FILE)]


def _tell_refused(written: generate_text.Texts, file: Path) -> None:
    if written.refused:
        progress.say(
            f"warning: {len(written.refused)} texts were refused "
            f"({generate_text.reasons(written.refused)}), listed in {file}. The same command asks "
            "for them again"
        )


def _is_free(config: ConfigDict) -> bool:
    """Whether captions are looked up, and not asked for."""
    return generate_text.is_free(contract.load(config.caption.captioner).Captioner)


def _of_hashes(config: ConfigDict, pool: Pool) -> dict[str, Any]:
    """What hashes are made of."""
    return {
        "names": fingerprint(list(pool.paths)),
        "loading": images.loading_of(config).fingerprint(),
        "near": config.dedupe.near >= 0,
    }


def _of_captions(config: ConfigDict, groups: Groups) -> dict[str, Any]:
    """What captions are made of."""
    firsts = [group[0] for group in groups.members]
    return {"names": fingerprint(firsts), "settings": fingerprint(settings(config, pairs=False))}


def _of_pairs(config: ConfigDict, captions: Mapping[str, str]) -> dict[str, Any]:
    """What pairs are made of."""
    texts = fingerprint(list(captions.items()))
    return {"captions": texts, "settings": fingerprint(settings(config))}


def _of_rewrites(config: ConfigDict, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """What rewritten texts are made of."""
    return {"pairs": fingerprint(pairs), "settings": fingerprint(settings(config))}
