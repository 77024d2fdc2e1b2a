# SPDX-License-Identifier: Apache-2.0
"""Weights as wrappers of PyTorch save them: one set is read, two are named, none is guessed."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from cir_jax.convert import identify, importing, sources
from cir_jax.errors import UserError
from tests.convert import published
from tests.convert.published import VIT

PREFIXES = ["module.", "_orig_mod.", "model.", "clip_model.", "base_model.model.", "backbone.",
            "encoder.", "net.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.",
            "model.module.backbone.", "base_model.model.clip_model.", "module.module."]  # fmt: skip


@pytest.fixture(scope="module")
def want(tmp_path_factory):
    """What the same weights give under their own names."""
    place = published.write("openai", tmp_path_factory.mktemp("plain"), published.state())
    return importing.read(place, published.functions()).query


def under(prefix, tensors=None):
    return {prefix + name: x.contiguous() for name, x in (tensors or published.state()).items()}


def read(place, want, said, capsys):
    found = importing.read(place, published.functions()).query
    assert all(np.array_equal(found[path], want[path]) for path in want)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_prefix_of_every_name_is_taken_off_and_said(prefix, want, tmp_path, capsys):
    torch.save({"epoch": 1, "state_dict": under(prefix)}, tmp_path / "a.ckpt")
    read(tmp_path / "a.ckpt", want, f"(state_dict): '{prefix}positional_embedding' is", capsys)


@pytest.mark.parametrize(
    "container", ["pt", "legacy", "key", "deep", "safetensors", "shards", "bins"]
)
def test_in_every_container(container, want, tmp_path, capsys):
    tensors, place = under("module._orig_mod."), tmp_path / "a.bin"
    match container:
        case "pt":
            torch.save(tensors, place)
        case "legacy":
            torch.save(tensors, place, _use_new_zipfile_serialization=False)
        case "key":
            torch.save({"epoch": 3, "params": tensors}, place)
        case "deep":
            torch.save({"ema": {"model": tensors}, "optimizer": {"state": {}}}, place)
        case "safetensors":
            safetensors.torch.save_file(tensors, place)
        case "shards" | "bins":
            place = sharded(tmp_path, tensors, container == "shards")
    read(place, want, "'module._orig_mod.", capsys)


def sharded(folder, tensors, safe):
    names, middle = list(tensors), len(tensors) // 2
    ends = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    index = folder / f"{ends[0]}.{ends[1]}.index.json"
    listed = {}
    for number, part in enumerate((names[:middle], names[middle:]), 1):
        file = folder / f"{ends[0]}-{number:05d}-of-00002.{ends[1]}"
        held = {name: tensors[name] for name in part}
        safetensors.torch.save_file(held, file) if safe else torch.save(held, file)
        listed |= dict.fromkeys(part, file.name)
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return index


def test_a_folder_of_sharded_bins_and_a_compiled_model_of_transformers(want, tmp_path, capsys):
    published.write("huggingface", tmp_path, published.state())
    (tmp_path / "model.safetensors").unlink()
    named = published.in_huggingface_names(published.state())
    sharded(tmp_path, under("_orig_mod.", named), safe=False)
    read(tmp_path, want, "'_orig_mod.logit_scale' is read as 'logit_scale'", capsys)
    record = importing.read(tmp_path, published.functions()).record
    assert [file["file"].rpartition("/")[2] for file in record["files"]] == [
        "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]  # fmt: skip


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_json_beside_the_weights_in_every_encoding(codec, want, tmp_path, capsys):
    published.write("huggingface", tmp_path, published.state())
    (tmp_path / "model.safetensors").unlink()
    sharded(tmp_path, published.in_huggingface_names(published.state()), safe=False)
    for name in ("config.json", "pytorch_model.bin.index.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text, codec)
    importing.read(tmp_path, published.functions())
    (tmp_path / "config.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(UserError, match=r"config.json is not UTF-8 text after line 0; save it as"):
        sources.open_source(tmp_path)


def test_shards_that_are_not_there_or_no_state_dict(tmp_path):
    index = sharded(tmp_path, under(""), safe=False)
    torch.save({"model": under("")}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(UserError, match=r"00002-of-00002.bin holds model, no bare state dict"):
        sources.open_source(index)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"00002-of-00002.bin, which is not beside it"):
        sources.open_source(index)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module"])
def test_a_wrapper_around_a_part_of_the_model(wrapper, want, tmp_path, capsys):
    named = {
        name.replace("transformer.resblocks.", f"transformer.{wrapper}.resblocks."): x
        for name, x in published.state().items()
    }
    torch.save(named, tmp_path / "a.pt")
    read(tmp_path / "a.pt", want, f"transformer.{wrapper}.resblocks.0.", capsys)


PAIRS = [("student.", "teacher."), ("module.student.", "module.teacher."), ("", "ema."),
         ("model.", "model_ema."), ("visual_ema.", "momentum.model."),
         ("model.", "model.ema.")]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_two_sets_in_one_state_dict_are_refused_and_each_can_be_named(pair, want, tmp_path, capsys):
    other = published.state(seed=1)
    both = {**under(pair[0]), **under(pair[1], other)}
    safetensors.torch.save_file(both, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="2 sets of weights that fit") as refused:
        importing.read(tmp_path / "a.safetensors", published.functions())
    for part in (prefix.rstrip(".") for prefix in pair if prefix):
        assert f"{tmp_path}/a.safetensors::{part}" in str(refused.value)
    for prefix, mean in zip(pair, (published.state(), other), strict=True):
        if not prefix or prefix == pair[1].rpartition(".")[0].rpartition(".")[0] + ".":
            continue  # the other lies inside it
        place = f"{tmp_path}/a.safetensors::{prefix.rstrip('.')}"
        found = importing.read(place, published.functions()).query
        assert np.array_equal(found["text/position"], mean["positional_embedding"])
        assert "also holds names of its own (" in capsys.readouterr().out


@pytest.mark.parametrize("keys", [("state_dict", "model_ema"), ("model", "state_dict_ema"),
                                  ("student", "teacher"), ("params", "params_ema")])  # fmt: skip
def test_two_state_dicts_of_a_file_are_refused_and_each_can_be_named(keys, tmp_path, capsys):
    place, both = tmp_path / "a.pth", [published.state(seed=seed) for seed in (0, 1)]
    torch.save(dict(zip(keys, both, strict=True)) | {"optimizer": {"state": {0: {}}}}, place)
    with pytest.raises(UserError) as refused:
        importing.read(place, published.functions())
    assert f"{keys[0]} (74 tensors) and {keys[1]} (74 tensors)" in str(refused.value)
    assert f"Name one: {place}::{keys[0]} or {place}::{keys[1]}" in str(refused.value)
    for key, tensors in zip(keys, both, strict=True):
        found = importing.read(f"{place}::{key}", published.functions()).query
        assert np.array_equal(found["text/position"], tensors["positional_embedding"])
        other = keys[1 - keys.index(key)]
        assert f"{place} also holds {other} (74 tensors): not read" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"no part 'modle'; there are '{keys[0]}', '{keys[1]}'"):
        importing.read(f"{place}::modle", published.functions())


def test_the_only_one_that_fits_is_read(want, tmp_path, capsys):
    torch.save({"model": {"x": torch.zeros(2)}, "model_ema": under("module.")}, tmp_path / "a.pt")
    read(tmp_path / "a.pt", want, "also holds model (1 tensors): not read", capsys)


def test_what_lies_beside_a_part_is_no_part_of_it(want, tmp_path, capsys):
    named = {**under("backbone."), "head.weight": torch.zeros(3, 4)}
    torch.save(named, tmp_path / "a.pt")
    message = (
        f"below 'backbone' is OpenAI's .* 'head.weight' lie beside it.*{tmp_path}/a.pt::backbone"
    )
    with pytest.raises(UserError, match=message):
        importing.read(tmp_path / "a.pt", published.functions())
    found = identify.find(sources.open_source(f"{tmp_path}/a.pt::backbone"), "clip_sum")[1]
    assert found.config["tower"] == VIT
    read(f"{tmp_path}/a.pt::backbone", want, "names of its own (1 tensors): not read", capsys)


def test_half_a_model_below_a_prefix_is_none(tmp_path):
    named = under("module.")
    del named["module.ln_final.weight"]
    torch.save(named, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"1 missing: ln_final.weight \[64\]"):
        importing.read(tmp_path / "a.pt", published.functions())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.blip."])
def test_other_models_too(prefix, tmp_path):
    """The layout of a released run is told by its key, under whatever prefix its names are."""
    torch.save({"epoch": 7, "CLIP": under(prefix)}, tmp_path / "a.pt")
    layout, found = identify.find(sources.open_source(tmp_path / "a.pt"), "clip_sum")
    assert (layout.name, found.data["pad"]) == ("clip4cir", "target")
    names = [name for name, _, _ in identify.candidates(sources.open_source(tmp_path / "a.pt"))]
    assert names == ["clip_combiner", "clip_sum", "clip_weighted", "tgcir"]
