# SPDX-License-Identifier: Apache-2.0
"""Adapters as PEFT writes them: merged they are what PEFT computes, else nothing is taken."""

import json
import math
import tarfile

import numpy as np
import pytest
import safetensors.torch
import torch

import cir_jax
from cir_jax import main, weights
from cir_jax.convert import importing, opened
from cir_jax.errors import UserError
from tests.convert import peft_adapters, published

Q = "text_model.encoder.layers.0.self_attn.q_proj"
FC = "vision_model.encoder.layers.1.mlp.fc1"
TOKENS = "text_model.embeddings.token_embedding"
PATCH = "vision_model.embeddings.patch_embedding"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "openai/clip"}


def base(folder):
    return published.write("huggingface", folder, published.state())


def numbers(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


def adapter(folder, tensors, prefix="base_model.model.", binary=False, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    named = {prefix + name: x for name, x in tensors.items()}
    if binary:
        torch.save(named, folder / "adapter_model.bin")
    else:
        safetensors.torch.save_file(named, folder / "adapter_model.safetensors")
    return folder


def two(layer, out, inside, rank=4):
    return {f"{layer}.lora_A.weight": numbers(rank, inside, seed=1),
            f"{layer}.lora_B.weight": numbers(out, rank, seed=2)}  # fmt: skip


def compare(tmp_path, tensors, want, **options):
    """`want` are the differences to the base by transformers' names."""
    named = published.in_huggingface_names(published.state())
    changed = {name: named[name] + x for name, x in want.items()}
    whole = {n: x.contiguous() for n, x in (named | changed).items()}
    plain = base(tmp_path / "want")
    safetensors.torch.save_file(whole, plain / "model.safetensors", {"format": "pt"})
    places = [adapter(tmp_path / "adapter", tensors, **options), base(tmp_path / "base")]
    [source] = opened.sources_of(places)
    found = importing.read(source, published.functions())
    expected = importing.read(plain, published.functions()).query
    before = importing.read(places[1], published.functions()).query
    for path, value in expected.items():
        np.testing.assert_allclose(found.query[path], value, atol=1e-5, err_msg=path)
    assert any(not np.array_equal(expected[path], before[path]) for path in before)
    return found


def product(tensors, layer):
    return tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]


@pytest.mark.parametrize("binary", [False, True])
def test_alpha_over_r(binary, tmp_path, capsys):
    tensors = two(Q, 64, 64) | two(FC, 256, 64)
    want = {f"{layer}.weight": 2 * product(tensors, layer) for layer in (Q, FC)}
    found = compare(tmp_path, tensors, want, binary=binary)
    assert "adapter: a LoRA adapter, merged into" in capsys.readouterr().out
    files = [file["file"].rpartition("/")[2] for file in found.record["files"]]
    assert files[0] == "model.safetensors" and files[2] == "adapter_config.json"


def test_scaling_by_the_root_of_r_and_patterns(tmp_path):
    tensors = two(Q, 64, 64) | two(FC, 256, 64, rank=2)
    want = {f"{Q}.weight": 8 / math.sqrt(4) * product(tensors, Q),
            f"{FC}.weight": 5 / math.sqrt(2) * product(tensors, FC)}  # fmt: skip
    compare(tmp_path, tensors, want, use_rslora=True, rank_pattern={"fc1": 2},
            alpha_pattern={r"layers\.\d\.mlp\.fc1": 5})  # fmt: skip


def test_layers_that_are_stored_the_other_way(tmp_path):
    tensors = two(Q, 64, 64)
    compare(tmp_path, tensors, {f"{Q}.weight": 2 * product(tensors, Q).T}, fan_in_fan_out=True)


def test_modules_to_save_biases_embeddings_and_convolutions(tmp_path):
    state = published.in_huggingface_names(published.state())
    new, bias = numbers(32, 64, seed=3), numbers(64, seed=4)
    tokens = {f"{TOKENS}.lora_embedding_A": numbers(4, 49408, seed=5),
              f"{TOKENS}.lora_embedding_B": numbers(64, 4, seed=6)}  # fmt: skip
    patch = {f"{PATCH}.lora_A.weight": numbers(4, 3, 16, 16, seed=7),
             f"{PATCH}.lora_B.weight": numbers(64, 4, 1, 1, seed=8)}  # fmt: skip
    tensors = {"visual_projection.weight": new, f"{Q}.bias": bias} | tokens | patch | two(Q, 64, 64)
    a, b = patch.values()
    convolved = torch.nn.functional.conv2d(a.permute(1, 0, 2, 3), b).permute(1, 0, 2, 3)
    want = {"visual_projection.weight": new - state["visual_projection.weight"],
            f"{Q}.bias": bias - state[f"{Q}.bias"], f"{Q}.weight": 2 * product(tensors, Q),
            f"{TOKENS}.weight": 2 * (tokens[f"{TOKENS}.lora_embedding_B"]
                                     @ tokens[f"{TOKENS}.lora_embedding_A"]).T,
            f"{PATCH}.weight": 2 * convolved}  # fmt: skip
    saved = {"text_model.final_layer_norm.bias": numbers(64, seed=9)}
    for copy in ("modules_to_save", "original_module"):  # which PEFT writes beside, with `bias`
        tensors[f"text_model.final_layer_norm.{copy}.bias"] = numbers(64, seed=10)
    want |= {name: x - state[name] for name, x in saved.items()}
    whole = ["visual_projection", "final_layer_norm"]
    compare(tmp_path, tensors | saved, want, bias="all", modules_to_save=whole)


@pytest.fixture(scope="module")
def peft(tmp_path_factory):
    """What `peft_adapters.py` made: a folder for each case; and the base that they belong to."""
    folder = tmp_path_factory.mktemp("peft")
    with tarfile.open(peft_adapters.__file__.replace(".py", ".tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder, base(folder / "base")


REFUSED_OF_PEFT = {
    "other_base": "init_lora_weights='pissa', which changes the base too",
    "tokens": "trainable_token_indices .single tokens were trained.",
    "blocks": "use_bdlora .A and B are made of blocks.",
}


@pytest.mark.parametrize("case", peft_adapters.CASES)
def test_what_peft_itself_wrote_and_merged(peft, case):
    folder, plain = peft
    if case in REFUSED_OF_PEFT:
        with pytest.raises(UserError, match=REFUSED_OF_PEFT[case]):
            opened.sources_of([folder / case, plain])
        return
    [source] = opened.sources_of([folder / case, plain])
    found = source.groups[""]
    before = safetensors.torch.load_file(plain / "model.safetensors")
    expected = json.loads((folder / case / "expected.json").read_text())
    assert expected.keys() <= found.keys() == before.keys() and expected
    for name, tensor in found.items():
        value, other = np.asarray(tensor.read()), before[name].numpy()
        if name in expected:
            assert value.shape == other.shape and not np.array_equal(value, other), name
            error = np.abs(np.subtract(peft_adapters.sums(value), expected[name])).max()
            # Of rounding: PEFT, too, computes with float32.
            assert error < 2e-7 * np.sqrt(value.size) * max(1, np.abs(value).max()), name
        else:
            np.testing.assert_array_equal(value, other, err_msg=name)


@pytest.mark.parametrize("prefix", ["", "base_model.model.clip.", "base_model.model.module."])
def test_whatever_stands_before_the_names(prefix, tmp_path):
    tensors = two(Q, 64, 64)
    compare(tmp_path, tensors, {f"{Q}.weight": 2 * product(tensors, Q)}, prefix=prefix)


def test_every_way_to_name_two_places(tmp_path):
    places = [str(adapter(tmp_path / "a", two(Q, 64, 64))), str(base(tmp_path / "b"))]
    model = cir_jax.load(places)
    assert main.main(["import", *places, str(tmp_path / "run")]) == 0
    again = cir_jax.load(tmp_path / "run")
    assert all(np.array_equal(model._query[p], again._query[p]) for p in model._query)
    joined = ",".join(places)
    assert weights.load(joined, published.functions()).record["place"] == places[1]
    assert main.main(["inspect", places[0]]) == 0


REFUSED = [
    ({"peft_type": "LOHA"}, {}, "peft_type='LOHA', not 'LORA'"),
    ({"use_dora": True}, {}, "asks for A, B, magnitude_vector; fetch both"),
    ({"lora_bias": True}, {}, r"asks for A, B, B\.bias; fetch both"),
    ({"use_bdlora": {"nblocks": 2}}, {}, "use_bdlora"), ({"kasa_config": {"a": 1}}, {}, "kasa_con"),
    ({"use_novelty": True}, {}, "use_novelty=True, which is not known here"),
    ({}, {f"{Q}.lora_diag": numbers(4)}, "q_proj.lora_diag', which is no part of LoRA that is kn"),
    ({"init_lora_weights": "pissa_niter_4"}, {}, "changes the base too"),
    ({"r": 0}, {}, "r=0, no number"), ({"lora_alpha": "8"}, {}, "lora_alpha='8', no number"),
    ({"r": True}, {}, "r=True"), ({"rank_pattern": [3]}, {}, "no table of numbers"),
    ({"rank_pattern": {r"(a+)+\.fc1": 3}}, {}, "may take without end to look for"),
    ({"alpha_pattern": {r".*.*.*.*fc1": 3}}, {}, "may take without end to look for"),
    ({"alpha_pattern": {r"(a*)\1": 3}}, {}, "may take without end to look for"),
    ({"alpha_pattern": {"(": 3}}, {}, "alpha_pattern: missing"), ({"r": 8}, {}, "says rank 8 for"),
    ({}, {f"{FC}.lora_A.weight": numbers(4, 64)}, "half of the adapter"),
    ({}, two(FC, 64, 256), r"\[64, 256\] float32, and the base has \[256, 64\]"),
    ({}, two("no.such.layer", 64, 64), "layers that .* has not"),
    ({}, {f"{Q}.lora_magnitude_vector": numbers(64)}, "half of the adapter .* or more than one"),
    ({"use_dora": True}, {f"{Q}.lora_magnitude_vector": numbers(63)}, r"is \[\] float32"),
    ({}, {f"{Q}.bias": torch.zeros(64, dtype=torch.int32)}, "int32, and the base has"),
    ({}, {f"{FC}.lora_{x}.weight": numbers(4) for x in "AB"}, r"is \[\] float32"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_merged_is_said(number, tmp_path):
    changes, tensors, message = REFUSED[number]
    place = adapter(tmp_path / "a", two(Q, 64, 64) | tensors, **changes)
    with pytest.raises(UserError, match=message):
        [source] = opened.sources_of([place, base(tmp_path / "b")])
        importing.read(source, published.functions())


def test_an_adapter_alone_says_what_to_give(tmp_path):
    place = adapter(tmp_path / "a", two(Q, 64, 64))
    message = rf"Give the folder of those weights too, 'openai/clip' by its config.*{place} BASE"
    with pytest.raises(UserError, match=message):
        weights.load(str(place), published.functions())
    with pytest.raises(UserError, match="it is not known which of"):
        opened.sources_of([place, base(tmp_path / "b"), base(tmp_path / "c")])
    (place / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"none of adapter_model.safetensors, adapter_model.bin"):
        opened.sources_of([place, tmp_path / "b"])
