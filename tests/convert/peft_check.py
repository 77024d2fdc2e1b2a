# SPDX-License-Identifier: Apache-2.0
"""Asks PEFT itself what it makes of adapters of ours, and ours what PEFT saves of them again.

In an environment of its own, for the tests need no PEFT:

    pip install peft==0.21.2 torch==2.13.0 transformers
    python -m tests.convert.peft_check

For a tiny model of each kind that has a layout of transformers: PEFT loads the folder without a
word about names that are missing or too many, merges what we merge, computes with its adapters what
the merged model computes, and a folder that it saves is read again as the same factors. It prints
the largest differences.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np


def checked(model, folder):
    """{what: largest difference} of one model, in an empty folder."""
    import peft
    import torch
    import transformers

    from cir_jax.convert import adapters, exporting
    from cir_jax.towers import lora
    from tests.convert import test_adapters as cases

    classes = {"clip_sum": "CLIPModel", "blip": "BlipForImageTextRetrieval",
               "sprc": "Blip2ForImageTextRetrieval"}  # fmt: skip
    functions = cases.MODELS[model]()
    whole = cases.WHOLE if model == "clip_sum" else ()
    chosen, params, factors = cases.problem(functions, modules=cases.MODULES[model], trained=whole)
    base = {p: x * 2 if p in chosen.whole else x for p, x in params.items()}
    tree = params | factors
    merged = lora.merged(tree, chosen.scale)
    adapters.write(folder / "adapter", functions, chosen, tree, "sum", str(folder / "base"))
    for name, values in (("base", base), ("merged", merged)):
        exporting.write(folder / name, functions, values, values, layout="huggingface")

    def loaded(name):
        return getattr(transformers, classes[model]).from_pretrained(folder / name).eval()

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of PEFT, about keys
        adapted = peft.PeftModel.from_pretrained(loaded("base"), folder / "adapter").eval()
    adapted.save_pretrained(folder / "again")
    again = adapters.read(folder / "again", functions, chosen, base, "sum")
    found = {"read again": max(np.abs(again[p] - tree[p]).max() for p in again)}
    assert again.keys() == factors.keys() | chosen.whole
    inner = adapted.base_model.model
    side = functions.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.manual_seed(0))
    ids = torch.tensor(
        [[49406, 320, 1125, 49407]] * 2 if model == "clip_sum" else [[101, 7, 102]] * 2
    )

    def computed(network):
        inputs = {"input_ids": ids, "pixel_values": pixels}
        if model == "sprc":
            inputs |= {"attention_mask": torch.ones_like(ids)}
        options = {} if model == "clip_sum" else {"use_image_text_matching_head": False}
        if model == "blip":
            options = {"use_itm_head": False, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            out = network(**inputs, **options)
        return (out.logits_per_image if model != "blip" else out.itm_score).numpy()

    ours = loaded("merged")
    want, got = computed(ours), computed(inner)
    assert np.abs(want - computed(loaded("base"))).max() > 1e-3
    found["scores, not merged"] = np.abs(want - got).max() / np.abs(want).max()
    state, held = ours.state_dict(), adapted.merge_and_unload().state_dict()
    assert state.keys() == held.keys()
    found["weights, merged"] = max(float((state[n] - held[n]).abs().max()) for n in state)
    return found


def main():
    """Prints a line for each model."""
    for model in ("clip_sum", "blip", "sprc"):
        with tempfile.TemporaryDirectory() as folder:
            found = checked(model, Path(folder))
        print(model, {what: f"{value:.2g}" for what, value in found.items()}, flush=True)
        if not all(value < 1e-4 for value in found.values()):
            sys.exit(f"{model}: PEFT computes something else")


if __name__ == "__main__":
    import tests.conftest  # noqa: F401

    main()
