# SPDX-License-Identifier: Apache-2.0
"""The public API: what `cir_jax.load`, `cir_jax.evaluate` and `cir_jax.train` are.

model = cir_jax.load("best.pt")
rows = model.encode_images(["a.jpg", "b.jpg"])
query = model.encode_queries(["a.jpg"], ["but red"])
order, scores = model.rank(query, rows, k=1)
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import files, plugins
from cir_jax.data import places
from cir_jax.errors import UserError, nearest
from cir_jax.retrieval import loading as loaders
from cir_jax.retrieval.model import Model
from cir_jax.retrieval.pictures import Picture
from cir_jax.runtime import distributed
from cir_jax.training import from_scratch
from cir_jax.training import train as training

if TYPE_CHECKING:
    from cir_jax.retrieval.index.opened import Index

__all__ = ["Evaluation", "Model", "Picture", "evaluate", "load", "open_index", "train"]

BENCHMARKS = "cir_jax.evals.benchmarks"
StrPath = str | os.PathLike[str]


class Evaluation(TypedDict):
    """One evaluation; JSON.

    Keys:
      scores: metric -> per cent.
      selection: the metric that selects the best checkpoint of a training.
      protocol: everything that makes two numbers comparable: gallery, its size and hash, ...
    """

    scores: dict[str, float]
    selection: str
    protocol: dict[str, Any]


@files.permitted()
def load(
    path: StrPath | Sequence[StrPath],
    model: str | None = None,
    tower: str | None = None,
    pad: str | None = None,
    dtype: str | None = None,
    device: str | jax.Device | Mesh | None = None,
    loading: str | None = None,
    *,
    trust_code: bool = False,
    ignore_remote_code: bool = False,
) -> Model:
    """Loads a model from a run or from any weights that this project reads; no config is needed.

    Runs, and `.safetensors` files that `Model.save` or `cir-jax export` wrote, say all there is to
    know. Other files say which model they are of and how large; what they do not say is taken from
    what their layout was always trained with, or asked for:

      which model   a CLIP alone is `clip_sum` (the sum of CLIP4CIR, and zero-shot CLIP): the
                    other models on CLIP need weights that no CLIP has. Runs of CLIP4CIR, TG-CIR,
                    BLIP4CIR, SPRC and SPN are what they are.
      tower         said by all but the bare state dict of a CLIP, whose tensors do not say the
                    activation.
      pad           of released runs TargetPad with 1.25, but of TG-CIR, which crops; of the CLIP of
                    OpenAI, transformers and open_clip the crop they do themselves. A bare state
                    dict, BLIP's own weights and what cir_jax 0.1.0 exported do not say it.

    Args:
      path: a run folder, a `.pt` or `.safetensors` file, a folder of transformers or open_clip; a
        list of them if each holds a part of the model (a CLIP and its Combiner).
      model: which model composes, a name of cir_jax/models or a `.py` file of yours, whose code is
        then run; None if the files fit one model only. (A run that you have trained on this
        machine with a `.py` file runs that file.)
      tower: size and activation of the encoders, e.g. "ViT-B/32+gelu"; None if the files say it.
      pad: how images become squares, "target", "square" or "none"; None if the files say it.
      dtype: compute type: "float32", "bfloat16" or "auto" (bfloat16 on GPU and TPU); None is what a
        run was trained with, and "auto" for other weights. Parameters, rows and scores are float32.
      device: a `jax.Device`, a platform ("cpu"), or a mesh of `cir_jax.runtime.mesh.make`, over
        whose devices images, candidates and parameters are spread; None is every device there is.
      loading: `data.loading`; None: what the weights say, else "natural" but for published sets.
      trust_code: run the `.py` files that a run folder names, though you have not trained with them
        on this machine.
      ignore_remote_code: read a folder of transformers as the plain model that its tensors fit
        where its config names code of its own (`auto_map`), which is never run; vectors may differ
        from those of that code. BGE-VL base and large need no such word: their formula is known.

    Raises:
      UserError: there are no weights there, they are damaged or of no model here, an argument does
        not agree with them, or they leave open what an argument must say: it is named.
    """
    _connect()
    return loaders.load(
        path,
        loaders.Arguments(model, tower, pad, dtype, loading, trust_code, ignore_remote_code),
        device,
    )


@files.permitted()
def open_index(path: StrPath, model: Model | None = None) -> "Index":
    """Opens an index that `cir-jax index` or `Model.index` has made.

    All of it is compared with its checksums, 0.1 s per GB of rows that is in memory already.

    Args:
      path: folder of the index; it may be read-only.
      model: its model, if it is loaded already; None loads it from where its weights were, when it
        is first needed.

    Raises:
      UserError: there is no index, it is not finished or damaged, or it is of another model.
    """
    from cir_jax.retrieval import opening  # imports pyarrow, which takes a second

    _connect()
    return opening.open_index(path, model)


@files.permitted()
def evaluate(model: Model, benchmark: str, root: StrPath = "", **options: Any) -> Evaluation:
    """Scores a model on a benchmark, as `cir-jax evaluate` does.

    Args:
      model: see `load`.
      benchmark: a name of cir_jax/evals/benchmarks ("fashioniq", "cirr", "circo", "genecis",
        "folder", "emoji") or a `.py` file of yours.
      root: folder of its data set, in the layout that its authors publish.
      options: keys of the section `eval` of configs/base.py, e.g. gallery="val" or split="val";
        and `categories` of FashionIQ.

    Raises:
      UserError: no such benchmark or option, or the data set is not there or not whole.
    """
    config = _benchmark_config(benchmark, root, options)
    module = plugins.load(BENCHMARKS, benchmark, marker="build")
    with places.within(config):
        built = module.build(config)
    retriever = model.retriever(
        batch=config.eval.batch, threads=config.data.threads, dataset=benchmark
    )
    result = built.run(retriever)
    return {"scores": result.scores, "selection": result.selection, "protocol": result.protocol}


@files.permitted()
def train(config: str, changes: Mapping[str, Any] | Sequence[str] = ()) -> dict[str, Any]:
    """Trains one stage of a model, as `cir-jax train` does; the same call again resumes it.

    SIGTERM and the first Ctrl-C, if this is called in the main thread, save after the step that is
    being made and return with "finished": False; a second Ctrl-C raises KeyboardInterrupt. The
    program's own handlers are back afterwards, and nothing ends the program: unlike the command,
    this waits for as long as a step, a compilation or an evaluation takes. Of several processes,
    each prints why the run has ended; one that waits for another in a collective goes on waiting
    until jax ends it.

    Args:
      config: a config by name with its argument, "clip_sum:fashioniq,stage=1", or a `.py` file.
      changes: key -> value, e.g. {"data.root": "DATA", "batch": 128}; or "key=value" strings. Every
        key is explained in configs/base.py; "init_from" names the weights to start from.

    Returns:
      What `results.json` in the run folder holds: "workdir", "step", "best", "scores", "history"
      and more. `load(results["workdir"])` is the trained model.

    Raises:
      UserError: an unknown config or key, a value of another type, data that cannot be used, or a
        model of full size without weights to start from: give "init_from", or "from_scratch": True.
    """
    loaded = configs.load(config, _as_text(changes) if isinstance(changes, Mapping) else changes)
    if "stage" not in loaded:
        raise UserError(f"config {config!r} makes triplets; use it with `cir-jax positives`")
    from_scratch.check(loaded)
    _connect()
    return training.train(loaded)


def _connect() -> None:
    """Joins the other processes of a run, if the environment says there are any."""
    if not jax.distributed.is_initialized():
        distributed.initialize()


def _benchmark_config(benchmark: str, root: StrPath, options: Mapping[str, Any]) -> ConfigDict:
    """The config of a benchmark; of its sections `eval` and `data` a benchmark is built."""
    changes = {"eval.benchmark": benchmark, "eval.root": Path(root).expanduser() if root else ""}
    of_eval = {*configs.load("base", _as_text(changes)).eval}
    known = sorted(of_eval - {"benchmark", "root", "every"} | {"categories"})
    for key, value in options.items():
        if key not in known:
            raise UserError(
                f"evaluate has no option {key!r}; there are: {', '.join(known)}."
                f"{nearest(key, known)}"
            )
        changes["data.categories" if key == "categories" else f"eval.{key}"] = value
    return configs.load("base", _as_text(changes))


def _as_text(changes: Mapping[str, Any]) -> list[str]:
    """Changes of a config as "key=value" strings; the inverse of how their values are read."""

    def text(value: Any) -> str:
        if isinstance(value, str | os.PathLike):
            return os.fspath(value)
        return repr(value.item() if isinstance(value, np.generic) else value)

    return [f"{key}={text(value)}" for key, value in changes.items()]
