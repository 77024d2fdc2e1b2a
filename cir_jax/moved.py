# SPDX-License-Identifier: Apache-2.0
"""Imports of version 0.1.0 that are elsewhere now: the error says where. Only version 0.2 does."""

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

# Folders that are no more. What is in them and not named below has kept its name.
FOLDERS = {
    "positives": "datasets",
    "positives.importers": "datasets.importers",
    "positives.scaling": "generation",
    "positives.scaling.captioners": "generation.captioners",
    "negatives": "losses",
    "stages": "training.stages",
}
# Old folder -> new folder -> "name" of a file, or "old:new".
FILES = {
    "": {
        "": "models.contract:contract runtime.files:files runtime.progress:progress "
        "runtime.rules:rules runtime.weights:weights",
        "training": "build:setup train:train step:step runtime.start:state",
    },
    "positives": {
        "data": "triplets image_table annotations inspection",
        "datasets.readers": "fashioniq cirr circo folder emoji genecis",
        "datasets": "importers.contract:importer importers.importing:importing.run",
        "datasets.importing": "importers.partial:writer importers.streams:streams "
        "importers.shards:shards importers.json_text:json_stream",
    },
    "positives.scaling": {
        "datasets": "lists:image_lists",
        "generation": "looks:image_hashes mine:hard_negatives "
        "windows:similarity writing:generate_text "
        "captioners.contract:captioner captioners.inputs:caption_inputs",
        "servers": "captioners.in_flight:retry captioners.patience:retry",
    },
    "negatives": {
        "bank": "bank bank_build:build bank_files:files bank_folder:files references",
    },
    "stages": {"training": "contract:stage"},
    "evals": {
        "retrieval": "ranking retrieval:retriever",
        "evals.benchmarks": "circo cirr emoji fashioniq folder genecis",
        "evals.submissions": "circo_submission:circo submission:cirr",
        "evals.reports": "figures report run_report sections",
        "data": "pictures:small_pictures",
        "": "page:html_page",
    },
    "convert": {
        "convert": "contract:layout copies:tied own:native values:arrays "
        "containers.mistaken:containers.file_kinds",
        "models": "blip:blip.layouts clip_combiner:clip_combiner.layouts "
        "clip_sum:clip_sum.layouts sprc:sprc.layouts tgcir:tgcir.layouts",
        "towers.clip": "clip:weight_rules huggingface open_clip processor_files",
        "towers.blip": "positions:pos_embed blip_rules:weight_rules blip_huggingface:huggingface",
        "towers.blip2": "blip2_rules:weight_rules blip2_shapes:shapes "
        "blip2_huggingface:huggingface",
    },
    "towers": {
        "towers.clip": "clip_sizes:sizes clip_resnet:resnet clip_text:text vit",
        "towers.blip": "blip_sizes:sizes med",
        "towers.blip2": "blip2_sizes:sizes qformer",
        "models.tgcir": "token_learner",
    },
}
# Functions that are not where the rest of their file is.
ALSO = {
    "build": "; its `restore` and `load` are `from_run` and `from_weights` of "
    "cir_jax.retrieval.load",
    "train": "; its function is also cir_jax.train",
}
# Names that went to another file, where their own is still there: module -> file, names.
NAMES = {"convert.tables": ("weight_rules", ("dense", "norm", "LINEAR", "CONVOLUTION"))}


def new_name(name: str) -> str | None:
    """Where a module of version 0.1.0 is now: "cir_jax.train" -> "cir_jax.training.train"."""
    old = name.removeprefix("cir_jax.")
    for folder, places in FILES.items():
        for place, files in places.items():
            for before, _, after in (file.partition(":") for file in files.split()):
                if old == ".".join(filter(None, (folder, before))):
                    return ".".join(filter(None, ("cir_jax", place, after or before)))
    folder, _, file = old.rpartition(".")
    if old in FOLDERS:
        return f"cir_jax.{FOLDERS[old]}"
    return f"cir_jax.{FOLDERS[folder]}.{file}" if folder in FOLDERS else None


def names_of(module: str) -> Callable[[str], NoReturn]:
    """`__getattr__` of a module of NAMES."""
    file, names = NAMES[module.removeprefix("cir_jax.")]

    def missing(name: str) -> NoReturn:
        if name in names:
            raise ImportError(f"{module}.{name} is cir_jax.{file}.{name} now", name=module)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, so only for what is nowhere."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        old = name.removeprefix("cir_jax.")
        if old == name:
            return None
        if old in FOLDERS:  # empty: the file that is asked for in it says more
            return ModuleSpec(name, self, is_package=True)
        if new := new_name(name):
            raise ImportError(f"{name} is {new} now{ALSO.get(old, '')}", name=name)
        return None

    def exec_module(self, module: ModuleType) -> None:
        def missing(attribute: str) -> NoReturn:
            new = new_name(module.__name__)
            raise AttributeError(f"{module.__name__} is {new} now; it has no {attribute!r} here")

        vars(module)["__getattr__"] = missing


def answer() -> None:
    """Makes an old import say its new name."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
