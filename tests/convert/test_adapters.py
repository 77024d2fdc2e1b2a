# SPDX-License-Identifier: Apache-2.0
"""Adapters of ours as a folder of PEFT, and back; tests/convert/peft_check.py asks PEFT itself."""

import dataclasses
import json
import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cir_jax import config as configs
from cir_jax import contract, main, weights
from cir_jax.convert import adapters as folders
from cir_jax.convert import exporting, importing, opened
from cir_jax.errors import UserError
from cir_jax.params import LORA_A
from cir_jax.runtime import checkpoint, frozen
from cir_jax.towers import lora
from cir_jax.training import adapters as training
from tests import runs
from tests.convert import published

WHOLE = ("biases", "norms")


def problem(functions, rank=2, alpha=3.0, modules=("all",), trained=(), seed=1):
    """(functions with adapters, parameters, factors) with random values everywhere."""
    config = types.SimpleNamespace(rank=rank, alpha=alpha, modules=modules, trained=trained)
    abstract = functions.abstract
    chosen = lora.choose(config, abstract, functions.stacked, list(abstract), list(abstract))
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


def test_the_names_are_those_of_the_towers(tmp_path):
    siglip = runs.tiny("unused", "unused", "model.tower=tiny-siglip2", model="clip_sum")
    gemma = runs.tiny("unused", "unused", model="gemma_embedding")
    for config, layer in (
        (siglip, "text_model.encoder.layers.0.mlp.fc1"),
        (gemma, "language_model.layers.0.mlp.gate_proj"),
    ):
        functions = contract.build(config.model)
        chosen, params, factors = problem(functions, modules=("mlp",))
        folders.write(tmp_path, functions, chosen, params | factors, "sum")
        said = json.loads((tmp_path / "adapter_config.json").read_text())
        assert layer in said["target_modules"]
        again = folders.read(tmp_path, functions, chosen, params, "sum")
        assert all(np.array_equal(again[path], x) for path, x in factors.items())
    functions = published.functions(published.RESNET)
    with pytest.raises(UserError, match=r"PEFT's adapters have .transformers has no CLIP with a R"):
        chosen, params, factors = problem(functions, modules=("mlp",))
        folders.write(tmp_path, functions, chosen, params | factors, "sum")


def test_models_without_a_layout_of_transformers(tmp_path):
    functions = contract.build(runs.tiny("unused", "unused", model="cross_attention").model)
    chosen, params, factors = problem(functions)
    with pytest.raises(UserError, match="has no layout of transformers, whose names"):
        folders.write(tmp_path, functions, chosen, params | factors, "sum")


def run_with_adapters(folder, functions, config, base):
    """A run folder as training leaves it, without the training."""
    chosen, _, factors = problem(functions, alpha=4.0, modules=("attention", "mlp"))
    factors = {path: x / 30 for path, x in factors.items()}
    functions = dataclasses.replace(functions, adapters=chosen)
    checksum = training.checksum(functions, base)
    frozen.write(folder, {p: jnp.asarray(x) for p, x in base.items()}, checksum)
    record = {
        "config": configs.to_json(config), "index_is_query": True, "step": 1,
        "paths": {"fixed": sorted(base), "trained": sorted(factors)},
        "shapes": {p: list(s.shape) for p, s in functions.abstract.items()},
        "source": {"place": "clip"}, **training.record(functions, checksum),
    }  # fmt: skip
    best = checkpoint.Checkpoints(folder / checkpoint.BEST)
    best.save(1, {"trained": {p: jnp.asarray(x) for p, x in factors.items()}}, record)
    best.close()
    return functions, factors, checksum


def test_a_run_is_exported_merged_and_as_an_adapter_to_go_on_from(tmp_path, capsys):
    place = published.write("huggingface", tmp_path / "base", published.state())
    functions = published.functions()
    base = importing.read(place, functions).query
    changes = (f"model.tower={published.VIT}", "lora.rank=2", "lora.alpha=4")
    config = runs.tiny("unused", "unused", *changes, model="clip_sum")
    run, adapter = tmp_path / "run", str(tmp_path / "adapter")
    functions, factors, checksum = run_with_adapters(run, functions, config, base)
    assert main.main(["export", str(run), adapter, "--format", "peft"]) == 0
    want = weights.load(str(run), functions).query
    got = weights.load(f"{adapter},{place}", functions).query
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_allclose(got[path], value, atol=1e-6, err_msg=path)
    assert any(not np.array_equal(base[p], want[p]) for p in want)
    with config.unlocked():
        config.lora.init_from = adapter
    again = training.start(config, functions, base, checksum)
    assert again.keys() == factors.keys()
    assert all(np.array_equal(again[p], factors[p]) for p in factors)
    with pytest.raises(UserError, match="trained on other weights than init_from gives here"):
        training.start(config, functions, base, "of others")
    capsys.readouterr()
    for given, flags, message in (
        (place, [], "is of the folder of a run that trained with adapters"),
        (run, ["--tree", "index"], "leave both out"),
    ):
        assert main.main(["export", str(given), "x", "--format", "peft", *flags]) == 2
        assert message in capsys.readouterr().err
    plain = weights.save_run(tmp_path / "plain", config, functions, weights.Weights(base, base, {}))
    assert main.main(["export", str(plain), "x", "--format", "peft"]) == 2
    assert "was trained without adapters" in capsys.readouterr().err
