# SPDX-License-Identifier: Apache-2.0
"""Adapters of ours as a folder of PEFT, and back; tests/convert/peft_check.py asks PEFT itself."""

import json
import shutil
import types

import numpy as np
import pytest
import safetensors.numpy

from cir_jax import contract, main, weights
from cir_jax.convert import adapters as folders
from cir_jax.convert import exporting, importing, opened
from cir_jax.errors import UserError
from cir_jax.params import LORA_A, LORA_B
from cir_jax.towers import lora
from cir_jax.training import train
from tests import runs
from tests.convert import published

WHOLE = ("biases", "norms")


def problem(functions, rank=2, alpha=3.0, modules=("all",), trained=(), seed=1):
    """(functions with adapters, parameters, factors) with random values everywhere."""
    config = types.SimpleNamespace(rank=rank, alpha=alpha, modules=modules, trained=trained)
    abstract = functions.abstract
    chosen = lora.choose(config, abstract, functions.stacked, list(abstract))
    rng = np.random.default_rng(seed)
    params = {p: rng.normal(size=x.shape).astype("f4") for p, x in abstract.items()}
    factors = {p: rng.normal(size=x.shape).astype("f4") for p, x in chosen.shapes.items()}
    return chosen, params, factors


def blip():
    return contract.build(runs.tiny("unused", "unused", model="blip").model)


def sprc():
    return contract.build(runs.tiny("unused", "unused", model="sprc").model)


MODELS = {"clip_sum": published.functions, "blip": blip, "sprc": sprc}
# Of BLIP-2 the layers of two kinds; the image encoder of BLIP has queries, keys and values in one.
MODULES = {
    "clip_sum": ("all",),
    "blip": ("mlp", r".*/(query|value)/kernel"),
    "sprc": ("attention",),
}


@pytest.mark.parametrize("model", MODELS)
def test_merged_by_their_reader_and_read_again_they_are_the_same(model, tmp_path):
    functions = MODELS[model]()
    whole = WHOLE if model == "clip_sum" else ()
    chosen, params, factors = problem(functions, modules=MODULES[model], trained=whole)
    base = {p: x * 2 if p in chosen.whole else x for p, x in params.items()}
    place = tmp_path / "adapter"
    folders.write(place, functions, chosen, params | factors, "sum", "the base")
    exporting.write(tmp_path / "base", functions, base, base, layout="huggingface")
    [source] = opened.sources_of([place, tmp_path / "base"])
    got = importing.read(source, functions).query
    want = lora.merged(params | factors, 1.5)
    if model == "sprc":  # transformers has no prompts
        del want["prompt_tokens"]
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_allclose(got[path], value, atol=1e-5, err_msg=path)
    again = folders.read(place, functions, chosen, base, "sum")
    assert again.keys() == factors.keys() | chosen.whole
    for path, value in again.items():
        np.testing.assert_array_equal(value, (params | factors)[path], err_msg=path)


def test_the_config_of_a_folder(tmp_path):
    functions = blip()
    chosen, params, factors = problem(functions, modules=("visual/.*",))
    folders.write(tmp_path, functions, chosen, params | factors, "sum", "there")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 3 and config["bias"] == "none"
    fused = [name for name in config["target_modules"] if name.endswith("qkv")]
    assert config["rank_pattern"] == dict.fromkeys(fused, 6) and len(fused) == 2
    assert config["alpha_pattern"] == dict.fromkeys(fused, 9)
    assert config["base_model_name_or_path"] == "there" and config["modules_to_save"] is None
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert tensors[f"base_model.model.{fused[0]}.lora_A.weight"].shape == (6, 32)
    assert tensors[f"base_model.model.{fused[0]}.lora_B.weight"].shape == (96, 6)


def saved(tmp_path, **changes):
    functions = published.functions()
    chosen, params, factors = problem(functions, **changes)
    folders.write(tmp_path, functions, chosen, params | factors, "sum")
    return functions, chosen, params


def test_what_an_adapter_cannot_go_on_from(tmp_path):
    functions, chosen, params = saved(tmp_path / "a", modules=("attention",), trained=("biases",))

    def read(chosen=chosen, checksum="sum", place=tmp_path / "a"):
        return folders.read(place, functions, chosen, params, checksum)

    def other(**changes):
        return problem(functions, **({"modules": ("attention",), "trained": WHOLE} | changes))[0]

    with pytest.raises(UserError, match="trained on other weights than init_from gives here"):
        read(checksum="of another")
    with pytest.raises(
        UserError, match=r"rank 2 and alpha 3, .* give --set lora.rank=2 --set lora"
    ):
        read(other(rank=4))
    with pytest.raises(UserError, match=r"rank 2 and alpha 3, and the config says .*alpha=5;"):
        read(other(alpha=5.0))
    with pytest.raises(UserError, match=r"of other layers: only it adapts .*q_proj"):
        read(other(modules=("visual/.*value/kernel", "text/.*value/kernel")))
    with pytest.raises(UserError, match=r"only lora.modules names .*fc1"):
        read(other(modules=("attention", "mlp")))
    with pytest.raises(UserError, match=r"has trained .*bias, .* name it in lora.trained"):
        read(other(trained=()))
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": True}))
    with pytest.raises(UserError, match="more than A and B of a linear layer"):
        read(place=tmp_path / "b")


def test_blocks_of_one_tensor_that_are_none(tmp_path):
    functions = blip()
    chosen, params, factors = problem(functions, modules=("visual/.*",))
    folders.write(tmp_path, functions, chosen, params | factors, "sum")
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = next(n for n in tensors if "qkv.lora_B" in n)
    tensors[name] = tensors[name] + 1
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError, match="its B is not in blocks of rank 2"):
        folders.read(tmp_path, functions, chosen, params, "sum")
    whole = problem(functions, rank=6, alpha=9.0, modules=("visual/.*/attention/.*",))[0]
    config = tmp_path / "adapter_config.json"
    said = json.loads(config.read_text())
    kept = {n: x for n, x in tensors.items() if "qkv" in n}
    safetensors.numpy.save_file(kept, file)
    only = problem(functions, 6, 9.0, ("visual/.*/(query|key|value)/kernel",))[0]
    config.write_text(json.dumps(said))
    got = folders.read(tmp_path, functions, only, params, "sum")
    a = tensors[name.replace("lora_B", "lora_A")]
    for part in ("query", "key", "value"):  # each has all of A
        path = f"visual/blocks/attention/{part}/kernel"
        layer = int(name.split("layers.")[1].split(".")[0])
        np.testing.assert_array_equal(got[path + LORA_A][layer], a.T)
    assert whole.matrices


NO_PLACE = [
    ({"modules": ("text/token_embedding",)}, r"text/token_embedding .1 in all. have adapters, and"),
    ({"modules": ("mlp",), "trained": ("logit_scale",)}, r"logit_scale .* PEFT has no place"),
    ({"modules": ("mlp",), "trained": ("visual/class_token",)}, r"class_embedding .* no place"),
]


@pytest.mark.parametrize("changes, message", NO_PLACE)
def test_what_peft_has_no_place_for(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        saved(tmp_path, **changes)


def test_models_without_a_layout_of_transformers(tmp_path):
    functions = contract.build(runs.tiny("unused", "unused", model="cross_attention").model)
    chosen, params, factors = problem(functions)
    with pytest.raises(UserError, match="has no layout of transformers, whose names"):
        folders.write(tmp_path, functions, chosen, params | factors, "sum")


def test_a_run_is_exported_merged_and_as_an_adapter_that_another_run_goes_on_from(tmp_path, capsys):
    root = runs.write_fashioniq(tmp_path / "data")
    base = published.write("huggingface", tmp_path / "base", published.state())
    changes = ("model.tower=auto", f"init_from={base}", "steps=1", "eval.every=0",
               "eval.benchmark=none", "lora.rank=2", "lora.alpha=4")  # fmt: skip
    train.train(runs.tiny(tmp_path / "one", root, *changes, model="clip_sum"))
    run, merged, adapter = (str(tmp_path / name) for name in ("one", "merged", "adapter"))
    assert main.main(["export", run, merged, "--format", "huggingface"]) == 0
    assert main.main(["export", run, adapter, "--format", "peft"]) == 0
    functions = published.functions()
    want = importing.read(merged, functions).query
    got = weights.load(f"{adapter},{base}", functions).query
    for path, value in want.items():
        np.testing.assert_allclose(got[path], value, atol=1e-6, err_msg=path)
    plain = importing.read(base, functions).query
    assert any(not np.array_equal(plain[p], want[p]) for p in want)
    more = (*changes, f"lora.init_from={adapter}", "optim.learning_rate=0")
    train.train(runs.tiny(tmp_path / "two", root, *more, model="clip_sum"))
    first, second = (weights.trees_of_run(tmp_path / n, functions)[1] for n in ("one", "two"))
    assert first.keys() == second.keys() and any(x.any() for p, x in first.items() if LORA_B in p)
    assert all(np.array_equal(first[p], second[p]) for p in first)
    capsys.readouterr()
    for places, flags, message in (
        ([base], [], "is of the folder of a run that trained with adapters"),
        ([run], ["--tree", "index"], "leave both out"),
    ):
        assert main.main(["export", *map(str, places), "x", "--format", "peft", *flags]) == 2
        assert message in capsys.readouterr().err
    assert main.main(["import", str(base), str(tmp_path / "imported")]) == 0
    assert main.main(["export", str(tmp_path / "imported"), "x", "--format", "peft"]) == 2
    assert "was trained without adapters" in capsys.readouterr().err
