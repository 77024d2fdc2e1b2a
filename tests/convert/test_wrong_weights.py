# SPDX-License-Identifier: Apache-2.0
"""Files that are not the weights a run asks for: each is named, and nothing is taken from it."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from cir_jax import config, weights
from cir_jax.convert import identify, importing, sources
from cir_jax.errors import UserError
from tests.convert import published
from tests.convert.published import RESNET, VIT


@pytest.fixture
def tensors():
    return published.state()


def refused(place, message, tower=VIT, model="clip_sum"):
    with pytest.raises(UserError, match=message):
        importing.read(place, published.functions(tower, model))


def saved(tmp_path, tensors, layout="openai"):
    return published.write(layout, tmp_path, tensors)


def test_a_missing_tensor(tensors, tmp_path):
    del tensors["transformer.resblocks.1.ln_2.bias"]
    refused(saved(tmp_path, tensors), r"1 missing: transformer.resblocks.1.ln_2.bias \[64\]")


@pytest.mark.parametrize("layout", ["clip4cir", "spn"])
def test_a_missing_tensor_of_the_released_layouts(layout, tensors, tmp_path):
    """The released code would have gone on with the value it had before."""
    del tensors["ln_final.weight"]
    prefix = "clip." if layout == "spn" else ""
    refused(saved(tmp_path, tensors, layout), rf"1 missing: {prefix}ln_final.weight \[64\]")


def test_a_tensor_too_many(tensors, tmp_path):
    tensors["visual.extra"] = torch.zeros(3, 4)
    refused(saved(tmp_path, tensors), r"1 not part of the model: visual.extra \[3, 4\]")


def test_a_transposed_tensor(tensors, tmp_path):
    name = "visual.transformer.resblocks.0.mlp.c_proj.weight"
    tensors[name] = tensors[name].T.contiguous()
    message = rf"{name} is \[256, 64\], the model has \[64, 256\] \(transposed\?\)"
    refused(saved(tmp_path, tensors), message)


def test_another_architecture(tensors, tmp_path):
    place = saved(tmp_path, tensors)
    message = rf"is of model.tower={VIT}, but the config says model.tower={RESNET}; give --set "
    refused(place, message + rf"model.tower={VIT}$", tower=RESNET)
    message = rf"is of model.tower={VIT}, .* --set model.tower={VIT} \(or model.tower=auto\)"
    refused(saved(tmp_path, tensors, "spn"), message, tower=RESNET)
    longer = VIT.replace("text-w64-l3", "text-w64-l4")
    refused(place, rf"is of model.tower={VIT}, but .*={longer};", tower=longer)


def test_another_context(tensors, tmp_path):
    place = saved(tmp_path, tensors)
    with pytest.raises(UserError, match=r"is of model.context=0, but the config says .*=32"):
        importing.read(place, published.functions(context=32))
    tensors["positional_embedding"] = torch.zeros(32, 64)
    place = saved(tmp_path, tensors)
    with pytest.raises(UserError, match=r"is of model.context=32, but the config says .*=0"):
        importing.read(place, published.functions())
    assert importing.read(place, published.functions(context=32)).query


def test_another_tokenizer(tensors, tmp_path):
    tensors["token_embedding.weight"] = torch.zeros(250002, 64)
    refused(saved(tmp_path, tensors), r"has 250002 tokens, not CLIP's 49408")


def test_another_model(tmp_path):
    torch.save({"bert.embeddings.weight": torch.zeros(2, 3)}, tmp_path / "a.pt")
    message = r"holds no weights of clip_sum, but a state dict of 1 tensors \(bert.embeddings"
    refused(tmp_path / "a.pt", message + r".*clip_sum reads: .*released runs")
    with pytest.raises(UserError, match=r"no model here has these; give --model NAME"):
        identify.sole_model([sources.open_source(tmp_path / "a.pt")])


def test_half_a_model(tensors, tmp_path):
    image = {n: t for n, t in tensors.items() if n.startswith("visual.")}
    refused(saved(tmp_path, image), r"token_embedding.weight, which tells its size, is missing")
    network = {"vision_model.embeddings.patch_embedding.weight": torch.zeros(64, 3, 16, 16)}
    safetensors.torch.save_file(network, tmp_path / "model.safetensors")
    refused(tmp_path, r"has the names of transformers' CLIPModel but no config.json was given")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_and_named(dtype, tensors, tmp_path, capsys):
    other = {n: t.to(dtype) for n, t in tensors.items()}
    found = importing.read(saved(tmp_path, other), published.functions())
    assert {x.dtype for x in found.query.values()} == {np.dtype(np.float32)}
    name = str(dtype).removeprefix("torch.")
    assert f"{len(other)} of {name}, read as float32" in capsys.readouterr().out
    want = other["text_projection"].float().numpy()
    np.testing.assert_array_equal(found.query["text/proj"], want)


def test_whole_numbers_are_no_weights(tensors, tmp_path):
    tensors["ln_final.weight"] = torch.ones(64, dtype=torch.int8)
    refused(saved(tmp_path, tensors), r"1 no floating point: ln_final.weight is int8")


def test_values_that_are_no_number(tensors, tmp_path):
    tensors["ln_final.weight"][3] = float("nan")
    refused(saved(tmp_path, tensors), r"1 not finite: ln_final.weight")


@pytest.mark.parametrize("layout", ["openai", "huggingface"])
def test_a_cut_file(layout, tensors, tmp_path):
    place = saved(tmp_path, tensors, layout)
    file = place / "model.safetensors" if place.is_dir() else place
    content = file.read_bytes()
    for kept in (len(content) // 2, len(content) - 10):
        file.write_bytes(content[:kept])
        refused(place, rf"{file.name}.*(cut|shorter|ends)")
    file.write_bytes(b"")
    refused(place, rf"{file.name} is empty")


class Writes:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_in_it(tensors, tmp_path):
    mark = tmp_path / "was-here"
    torch.save(tensors | {"a": Writes(mark)}, tmp_path / "bad.pt")
    refused(tmp_path / "bad.pt", r"bad.pt .*'?(io|_io|builtins)\.open")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["base_model.model.text_projection.lora_A.weight", "lora_unet_down.lora_down.weight"]
)
def test_a_lora_file(name, tensors, tmp_path):
    safetensors.torch.save_file({name: torch.zeros(4, 64)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", rf"is a LoRA adapter \(it holds {name}\).*merge_and_unload")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, r"is a LoRA adapter \(it has an adapter_config.json\)")


def test_what_is_no_file_of_weights(tmp_path):
    refused(tmp_path / "none.pt", r"none.pt does not exist; give a file of weights, or a folder")
    refused("openai/clip-vit-large-patch14", r"comes by `hf download openai/clip-vit-")
    refused(tmp_path, r"holds no weights: none of model.safetensors, .*; there is nothing")
    (tmp_path / "readme.txt").write_text("hello")
    refused(tmp_path, r"there is readme.txt")
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "model.safetensors").write_bytes(b"")
    torch.save([torch.zeros(2, 3), torch.zeros(2, 3)], tmp_path / "bank.pth")
    refused(tmp_path / "bank.pth", r"holds a list of 2, as banks of the released code are")
    torch.save({"epoch": 3, "optimizer": {"state": {}}}, tmp_path / "o.pt")
    refused(tmp_path / "o.pt", r"holds no state dict, only epoch, optimizer")


def test_a_damaged_config(tensors, tmp_path):
    place = saved(tmp_path, tensors, "huggingface")
    (place / "config.json").write_text("{")
    refused(place, r"config.json is no JSON .*fetch it again")
    (place / "config.json").write_text("[]")
    refused(place, r"config.json holds a list, not an object")
    with_gelu = json.loads(json.dumps({"model_type": "siglip"}))
    (place / "config.json").write_text(json.dumps(with_gelu))
    refused(place, r"siglip")


def settle(place, tower="auto", **changes):
    overrides = [f"model.tower={tower}", f"init_from={place}"]
    overrides += [f"{key}={value}" for key, value in changes.items()]
    return weights.resolve(config.load("base", overrides)).model


def test_auto_takes_the_size_of_the_file(tensors, tmp_path):
    place = saved(tmp_path / "h", tensors, "huggingface")
    assert settle(place).tower == VIT
    place = published.torchscript(tmp_path / "t.pt", RESNET)
    assert settle(place).tower == RESNET


def test_auto_does_not_guess(tensors, tmp_path):
    place = saved(tmp_path, tensors)
    with pytest.raises(UserError, match=r"do not say whether the activation is OpenAI's QuickGELU"):
        settle(place)
    assert settle(place, VIT + "+gelu").tower == VIT + "+gelu"
    for tower in (VIT, VIT + "+gelu", VIT.replace("l2-h1", "l2-h4")):
        assert importing.read(place, published.functions(tower)).query
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps(published.open_clip.config_of(published.sizes.find(VIT + "+gelu"), 77))
    )
    assert settle(place).tower == VIT + "+gelu"
    refused(place, rf"is of model.tower={VIT}\+gelu, but the config says model.tower={VIT}; give")


def test_auto_needs_weights():
    with pytest.raises(
        UserError, match=r"model.tower=auto takes the size of the weights in init_f"
    ):
        weights.resolve(config.load("base", ["model.tower=auto"]))


def test_the_released_layouts_are_never_in_doubt(tensors, tmp_path):
    for layout in ("clip4cir", "spn"):
        assert settle(saved(tmp_path, tensors, layout)).tower == VIT


def test_names_with_the_prefix_of_parallel_training(tensors, tmp_path):
    wrapped = {f"module.{n}": t for n, t in tensors.items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": wrapped, "optimizer": {"state": {}}},
               tmp_path / "epoch_3.pt")  # fmt: skip
    found = importing.read(tmp_path / "epoch_3.pt", published.functions())
    assert found.record["layout"] == "open_clip"
    np.testing.assert_array_equal(found.query["text/proj"], tensors["text_projection"].numpy())


def test_a_prefix_of_some_names_only_is_part_of_them(tensors, tmp_path):
    tensors["module.visual.proj"] = tensors["visual.proj"]
    refused(saved(tmp_path, tensors), r"1 not part of the model: module.visual.proj")
