# SPDX-License-Identifier: Apache-2.0
"""Every file that SPRC comes in: read, written again with the same bytes, and refused if wrong."""

import collections
import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from cir_jax import config, weights
from cir_jax.convert import exporting, identify, importing, sources
from cir_jax.errors import UserError
from cir_jax.models.sprc import layouts
from cir_jax.towers.blip2 import huggingface
from tests.convert import published_sprc as published

HEADS = (".cls.predictions.", "itm_head.")


def saved(model, path, kind):
    """Writes PyTorch's model as a released file of that kind."""
    state = collections.OrderedDict((n, x.clone()) for n, x in model.state_dict().items())
    match kind:
        case "spn":
            named = {f"blip_model.{n}": x for n, x in state.items()}
            torch.save({"epoch": 2, "state_dict": named}, path)
        case "sprc":
            torch.save({"epoch": 2, layouts.STAGE_ONE: state}, path)
        case "lavis":
            del state["prompt_tokens"]
            torch.save({"model": state}, path)
        case "lavis_former":
            chosen = {n: x for n, x in state.items() if not n.startswith("visual_encoder.")}
            del chosen["prompt_tokens"]
            torch.save({"model": chosen}, path)
        case "eva":
            part = model.visual_encoder.state_dict()
            more = {"norm.weight": torch.ones(32), "head.bias": torch.ones(5)}
            torch.save({n: x.half() if x.ndim > 1 else x for n, x in (part | more).items()}, path)
    return path


def equal(got, want):
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.mark.parametrize("kind", ["spn", "sprc"])
def test_a_released_run_comes_in_and_goes_out_with_the_same_bytes(kind, tmp_path):
    model = published.network(second=kind == "spn")
    with torch.no_grad():
        model.temp.fill_(0.0625 + 1e-4)
        model.visual_encoder.half()
    path = saved(model, tmp_path / "in.pt", kind)
    of = [(name, one.name) for name, one, _ in identify.candidates(sources.open_source(path))]
    assert of == [("sprc", kind)]  # it is no other model's
    functions = published.functions()
    found = importing.read(path, functions)
    index, query = published.ours(model.float())
    equal(found.index, index)
    equal(found.query, query)
    target = tmp_path / "out.pt"
    exporting.write(
        target, functions, found.index, found.query, layout=kind, dtype="source",
        record=found.record, epoch=2,
    )  # fmt: skip
    first, second = torch.load(path), torch.load(target)
    assert first.keys() == second.keys() and first["epoch"] == second["epoch"]
    group = "state_dict" if kind == "spn" else layouts.STAGE_ONE
    assert first[group].keys() == second[group].keys()
    for name, want in first[group].items():
        got = second[group][name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape), name
        assert torch.equal(got, want) or any(part in name for part in HEADS), name
    # Strictly: PyTorch finds every tensor, and the tied head shares the word table.
    again = published.network(second=kind == "spn", seed=5)
    names = {n.removeprefix("blip_model."): x.float() if x.is_floating_point() else x
             for n, x in second[group].items()}  # fmt: skip
    again.load_state_dict(names, strict=True)
    head = again.Qformer.cls["predictions"]
    state = torch.randn(2, 24)
    words = again.Qformer.bert.embeddings["word_embeddings"].weight
    assert torch.equal(head["decoder"](head["transform"]["dense"](state)), state @ words.T)
    assert not again.itm_head(state).any()


def test_stage_two_keeps_both_trees_and_a_file_of_one_tree_says_so(tmp_path):
    functions = published.functions()
    index, query = published.ours(published.network(second=True))
    differ = {path for path in index if not np.array_equal(index[path], query[path])}
    assert differ == set(functions.query_paths)
    exporting.write(tmp_path / "best.pt", functions, index, query, layout="spn")
    found = importing.read(tmp_path / "best.pt", functions)
    equal(found.index, index)
    equal(found.query, query)
    with pytest.raises(UserError, match=r"index and query both read .* Write --tree index and"):
        exporting.write(tmp_path / "one.pt", functions, index, query, layout="sprc")
    exporting.write(tmp_path / "one.pt", functions, index, query, layout="sprc", tree="query")
    found = importing.read(tmp_path / "one.pt", functions)
    equal(found.query, query)
    # A single tree in the layout of two is that tree twice.
    exporting.write(tmp_path / "two.pt", functions, index, index, layout="spn", tree="index")
    found = importing.read(tmp_path / "two.pt", functions)
    equal(found.query, index)
    equal(found.index, index)


def test_blip2_of_lavis_in_two_files_with_new_prompts(tmp_path):
    model, functions = published.network(), published.functions()
    image = saved(model, tmp_path / "eva.pth", "eva")
    former = saved(model, tmp_path / "former.pth", "lavis_former")
    found = weights.load(f"{image}, {former}", functions, seed=3)
    want = published.ours(model)[0]
    for path, value in want.items():
        if path == "prompt_tokens":
            assert 0.01 < found.index[path].std() < 0.03  # drawn as published
        elif path.startswith("visual/"):  # half precision
            np.testing.assert_allclose(found.index[path], value, rtol=1e-3, atol=1e-6)
        else:
            np.testing.assert_array_equal(found.index[path], value)
    with pytest.raises(UserError, match=r"lacks visual/blocks/.*name the file that has them too"):
        weights.load(str(former), functions, seed=3)
    whole = importing.read(saved(model, tmp_path / "whole.pth", "lavis"), functions)
    assert whole.record["layout"] == "lavis"
    equal(whole.query, {p: x for p, x in want.items() if p != "prompt_tokens"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(transformers' model, its folder)."""
    model = Blip2ForImageTextRetrieval(Blip2Config(**huggingface.config_of(published.SIZE)))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(std=0.3)
            value.add_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            if name.endswith("qkv.bias"):
                value.view(3, -1)[1] = 0
    place = tmp_path_factory.mktemp("blip2")
    model.eval().save_pretrained(place)
    return model, place


def test_a_folder_of_transformers_comes_in_and_goes_out(folder, tmp_path):
    model, place = folder
    functions = published.functions()
    # Its config says the heads, so the size is settled.
    automatic = config.load("base", ["model.name=sprc", "model.tower=auto"])
    assert identify.resolve(automatic, [place]).model.tower == published.TOWER
    assert [name for name, _, _ in identify.candidates(sources.open_source(place))] == ["sprc"]
    found = weights.load(str(place), functions, seed=0)
    first, _, text = published.examples()
    images, _, ids = published.in_torch(first, first, text)
    with torch.no_grad():
        out = model(pixel_values=images, input_ids=ids, attention_mask=(ids > 0).long())
    got = jax.jit(functions.target)(found.index, first)
    np.testing.assert_allclose(got, out.image_embeds, atol=2e-5)  # another epsilon of one norm
    exporting.write(tmp_path / "out", functions, found.index, found.query, layout="huggingface")
    again = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out").state_dict()
    want = model.state_dict()
    assert again.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(again[name], value) or name.startswith("itm_head"), name
    with pytest.raises(UserError, match=r"holds pytorch_model.bin of an earlier export"):
        (tmp_path / "out" / "pytorch_model.bin").touch()
        exporting.write(tmp_path / "out", functions, found.index, found.query, layout="huggingface")


def test_a_key_bias_that_is_not_zero_is_refused(folder, tmp_path):
    model, place = folder
    tensors = {n: x.clone() for n, x in model.state_dict().items()}
    tensors["vision_model.encoder.layers.1.self_attn.qkv.bias"][40] = 0.25
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((place / "config.json").read_text())
    with pytest.raises(
        UserError, match=r"layers.1.self_attn.qkv.bias has a bias of the keys .*25\)"
    ):
        importing.read(tmp_path, published.functions())


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        (
            "",
            "architectures",
            ["Blip2ForConditionalGeneration"],
            "only transformers' Blip2ForImage",
        ),
        ("", "model_type", "blip", r"model_type='blip'"),
        ("qformer_config", "vocab_size", 30522, "vocab_size=30522, not 30523"),
        ("qformer_config", "cross_attention_frequency", 3, "cross_attention_frequency=3, not 2"),
        ("qformer_config", "num_hidden_layers", 3, "a Q-Former of 3 layers, not of pairs"),
        ("vision_config", "hidden_act", "relu", "vision_config has hidden_act='relu'"),
        ("vision_config", "image_size", [16, 24], "image_size=.16, 24.; images and patches"),
        (
            "vision_config",
            "num_attention_heads",
            "2",
            "num_attention_heads='2'; it must be a whole",
        ),
    ],
)
def test_configs_of_transformers_that_are_refused(part, key, value, message, tmp_path):
    content = huggingface.config_of(published.SIZE)
    assert huggingface.size_of(content, tmp_path) == published.SIZE
    (content[part] if part else content)[key] = value
    with pytest.raises(UserError, match=message):
        huggingface.size_of(json.loads(json.dumps(content)), tmp_path)


def test_files_that_are_refused(tmp_path):
    functions, path = published.functions(), tmp_path / "wrong.pt"
    model = published.network(second=True)

    def refused(change, message, kind="spn"):
        saved(model, path, kind)
        tree = torch.load(path)
        group = next(value for value in tree.values() if isinstance(value, dict))
        change(group)
        torch.save(tree, path)
        with pytest.raises(UserError, match=message):
            importing.read(path, functions)

    query, index = "blip_model.Qformer_query.bert.", "blip_model.Qformer.bert."
    layer = "encoder.layer.2.crossattention.self.key.weight"
    refused(lambda g: g.pop("blip_model.text_proj_q.bias"), r"1 missing: .*text_proj_q.bias \[8\]")
    refused(lambda g: g.pop(f"{index}encoder.layer.3.output.dense.bias"), r"Qformer.*output.dense")
    refused(
        lambda g: g.update({"blip_model.more": torch.ones(2)}), r"not part of the model: .*more"
    )
    refused(lambda g: g[f"{query}{layer}"].add_(1), "differ, but they are one tensor")
    refused(
        lambda g: g.update({f"{index}embeddings.word_embeddings.weight": torch.ones(30524, 24)}),
        r"30524 tokens and 512 positions, not BLIP-2's 30523 and 512",
    )
    refused(
        lambda g: g.update({"blip_model.visual_encoder.class_embedding": torch.ones(4)}),
        "its image encoder is CLIP's ViT-L",
    )
    refused(
        lambda g: g.pop("blip_model.visual_encoder.cls_token"),
        "no BLIP-2: blip_model.visual_encoder.cls_token, which tells its size, is missing",
    )
    alone = tmp_path / "alone"
    alone.mkdir()
    names = ("vision_model.embeddings.class_embedding", "query_tokens")
    tensors = {name: torch.ones(1, 1, 4) for name in names}
    safetensors.torch.save_file(tensors, alone / "model.safetensors")
    with pytest.raises(UserError, match=r"no config.json was given, which says its heads"):
        importing.read(alone, functions)


def test_another_size_is_named(tmp_path):
    path = saved(published.network(), tmp_path / "one.pt", "sprc")
    with pytest.raises(
        UserError, match=r"is of model.tower=eva-16-8-w32-m48-l2-h1_qformer-w24-m40"
    ):
        importing.read(path, published.functions("tiny-blip2"))


def test_the_temperature_that_a_run_ended_with_is_written(tmp_path):
    functions, (index, query) = published.functions(), published.ours(published.network())
    learned = query | {"loss/temperature": np.float32(0.0333)}
    for layout, name in (("spn", "blip_model.temp"), ("sprc", "temp")):
        place = tmp_path / f"{layout}.pt"
        exporting.write(place, functions, index, learned, layout=layout)
        (held,) = (x for x in torch.load(place).values() if isinstance(x, dict))
        assert float(held[name]) == pytest.approx(0.0333)
