# SPDX-License-Identifier: Apache-2.0
"""What becomes of images that a benchmark cannot use, by the keys of a config."""

import json
from collections.abc import Mapping

from ml_collections import ConfigDict

from cir_jax.data.pixels import ImageFile
from cir_jax.data.screening import Screen
from cir_jax.data.unusable import Problem
from cir_jax.retrieval import load
from cir_jax.runtime import agreement, watchdog


def check_images(title: str, *galleries: Mapping[str, ImageFile], screen: Screen) -> None:
    """For a benchmark of several tasks: all images that cannot be used, not those of the first one.

    Args:
      title: names the benchmark in the message.
      galleries: name -> file, of each task.
      screen: of the benchmark. One that drops leaves them out task by task.

    Raises:
      UserError: there are some, and they are not dropped.
    """
    if not screen.drops:
        files = {str(file): file for gallery in galleries for file in gallery.values()}
        screen.unusable(files, title)


def of(config: ConfigDict) -> Screen:
    """What `eval.on_missing` says of images that cannot be used; "" is as `data.on_missing`."""
    own = config.eval.on_missing
    return Screen(
        own or config.data.on_missing,
        key="eval.on_missing" if own else "data.on_missing",
        root=config.eval.root or config.data.root,
        threads=config.data.threads,
        loading=load.loading(config),
        agree=agree,
        progressed=watchdog.progress,
    )


def given(on_missing: str | Screen) -> Screen:
    """The screen that a benchmark was given, or one that keeps nothing.

    Raises:
      UserError: it is neither a screen nor "error" nor "drop".
    """
    if isinstance(on_missing, Screen):
        return on_missing
    return Screen(on_missing, key="eval.on_missing", agree=agree, progressed=watchdog.progress)


def agree(found: Mapping[str, Problem]) -> dict[str, Problem]:
    """What any process of the run cannot use, which all then leave out."""
    told = {n: json.dumps([one.file, one.reason, one.why]) for n, one in found.items()}
    return {n: Problem(*json.loads(one)) for n, one in agreement.merged(told).items()}
