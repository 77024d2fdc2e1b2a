# SPDX-License-Identifier: Apache-2.0
"""Weights of TG-CIR: both published stages in and out, both trees, a CLIP to start from."""

import collections
import math

import numpy as np
import pytest
import torch

from cir_jax import weights
from cir_jax.convert import exporting, identify, importing, sources, tables, tied
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError
from cir_jax.models.tgcir import model as tgcir
from cir_jax.towers.clip import sizes
from tests.convert import published
from tests.models import tgcir_problem as problem
from tools.torch_models import tgcir as torch_tgcir

SHARED = {"masks", "token_learner/kernel", "token_learner/bias"}
NAMES = {1: "tgcir", 2: "tgcir_spn"}
BESIDE = {1: {}, 2: {"epoch": 3}}  # what the file says beside its tensors


def state(stage):
    """A state dict whose tensors may be changed; both names of the ViT have the same values."""
    items = problem.theirs(stage).state_dict().items()
    return collections.OrderedDict((name, x.clone()) for name, x in items)


def written(path, tensors, stage=1):
    torch.save({**BESIDE[stage], "state_dict": tensors}, path)
    return path


def mixed(tensors):
    return collections.OrderedDict((n, x.half() if x.ndim > 1 else x) for n, x in tensors.items())


@pytest.mark.parametrize("half", [False, True], ids=["float32", "mixed"])
@pytest.mark.parametrize("stage", [1, 2])
def test_in_and_out_again_the_bytes_are_the_same(stage, half, tmp_path):
    want = mixed(state(stage)) if half else state(stage)
    functions = problem.functions()
    found = importing.read(written(tmp_path / "in.pt", want, stage), functions)
    assert found.record["layout"] == NAMES[stage]
    place = tmp_path / "out.pt"
    exporting.write(
        place, functions, found.index, found.query, layout=NAMES[stage], dtype="source",
        record=found.record, epoch=3,
    )  # fmt: skip
    saved = torch.load(place)
    assert saved["epoch"] == 3
    assert saved["state_dict"].keys() == want.keys()
    for name, x in want.items():
        got = saved["state_dict"][name]
        assert (got.dtype, got.shape) == (x.dtype, x.shape), name
        assert torch.equal(got.view(-1).view(torch.uint8), x.reshape(-1).view(torch.uint8)), name


def test_the_two_trees_of_stage_two():
    index, query = problem.weights(2).index, problem.weights(2).query
    assert {p for p in index if index[p] is not query[p]} == SHARED
    tensors = state(2)
    for tree, end in ((index, ""), (query, "_text")):
        heads = [f"backbone.tokenlearn{end}.tokenizers.{i}.conv.0" for i in range(8)]
        for i, head in enumerate(heads):
            assert (
                tree["token_learner/kernel"][i].tobytes()
                == tensors[f"{head}.weight"].numpy().tobytes()
            )
            assert tree["token_learner/bias"][i] == tensors[f"{head}.bias"].item()
        np.testing.assert_array_equal(tree["masks"], tensors[f"backbone.masks{end}.weight"])
    one = problem.weights(1)
    assert one.index is one.query


def test_stage_one_starts_the_texts_from_the_images(tmp_path):
    """As the released stage two does, whatever a file of stage one has for texts."""
    tensors, functions = state(2), problem.functions()
    found = importing.read(written(tmp_path / "one.pt", tensors), functions)
    assert found.record["layout"] == "tgcir" and found.index is found.query
    np.testing.assert_array_equal(found.query["masks"], tensors["backbone.masks.weight"])
    layout, _ = identify.find(sources.open_source(tmp_path / "one.pt"), "tgcir")
    reason = tables.ignored_reason(layout.ignored, "backbone.masks_text.weight")
    assert reason == "stage two starts the copies for texts from those for images"


def test_after_stage_two_the_file_is_what_torch_computes(tmp_path):
    functions = problem.functions()
    index, after = problem.weights(1).index, problem.weights(2).query
    query = index | {p: after[p] for p, role in functions.roles.items() if role == "query"}
    place = tmp_path / "best.pt"
    exporting.write(place, functions, index, query, layout="tgcir_spn", epoch=4)
    saved = torch.load(place)
    assert list(saved) == ["epoch", "state_dict"] and saved["epoch"] == 4
    model = torch_tgcir.TgCir(problem.SIZE, problem.CONTEXT, stage=2)
    model.load_state_dict(saved["state_dict"], strict=True)
    images, _, texts = problem.as_torch(*problem.triplets())
    with torch.no_grad():
        reference = model.image_tokens(images)
        composed, rows = model.query(reference, texts), model.target(images)
    got = problem.outputs(index, query)
    np.testing.assert_allclose(got["query"], composed, atol=1e-5)
    np.testing.assert_allclose(got["target"][:, 0], rows, atol=1e-5)
    # One tree alone is written twice; two that differ are no file of stage one.
    exporting.write(place, functions, index, query, layout="tgcir_spn", tree="index")
    again = importing.read(place, functions)
    assert all(np.array_equal(again.query[p], index[p]) for p in index)
    with pytest.raises(
        UserError, match=r"index and query both read masks, token_learner/bias.* no s"
    ):
        exporting.write(place, functions, index, query, layout="tgcir")
    # Its CLIP alone is one model.
    exporting.write(tmp_path / "clip.pt", functions, index, query, layout="openai")
    clip = torch.load(tmp_path / "clip.pt")
    np.testing.assert_array_equal(clip["text_projection"], query["text/proj"])
    np.testing.assert_array_equal(clip["visual.proj"], index["visual/proj"])


def test_one_type_for_both_trees(tmp_path):
    found, functions = problem.weights(2), problem.functions()
    place = tmp_path / "half.pt"
    exporting.write(place, functions, found.index, found.query, layout="tgcir_spn", dtype="float16")
    assert {x.dtype for x in torch.load(place)["state_dict"].values()} == {torch.float16}


def changed(stage, name, change):
    tensors = state(stage)
    value = change(tensors[name])
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


WRONG = [
    (1, "backbone.image_backbone.proj", lambda x: x + 1,
     r"image_backbone.proj and backbone.clip.visual.proj differ, but they are one tensor under"),
    (1, "backbone.image_backbone.proj", lambda x: x.half(), r"visual.proj differ"),
    (1, "t_remain_map.2.bias", lambda x: None, r"1 missing: t_remain_map.2.bias \[1\]"),
    (2, "backbone.tokenlearn.tokenizers.5.conv.0.bias", lambda x: None,
     r"1 missing: backbone.tokenlearn.tokenizers.5.conv.0.bias \[1\]"),
    (2, "backbone.masks_text.weight", lambda x: x.T.contiguous(),
     r"masks_text.weight is \[32, 4\], the model has \[4, 32\] \(transposed\?\)"),
    (2, "backbone.tokenlearn_text.tokenizers.7.conv.0.weight", lambda x: x[..., 0],
     r"conv.0.weight is \[1, 32\], the model has \[1, 32, 1\]"),
    (2, "local_weight", lambda x: x * math.nan, r"1 not finite: local_weight"),
]  # fmt: skip


@pytest.mark.parametrize("stage, name, change, message", WRONG)
def test_what_is_wrong_with_a_file_is_said(stage, name, change, message, tmp_path):
    place = written(tmp_path / "x.pt", changed(stage, name, change), stage)
    with pytest.raises(UserError, match=message):
        importing.read(place, problem.functions())


def test_a_copy_that_is_not_there_is_no_loss_but_a_stranger_is(tmp_path):
    tensors = changed(1, "backbone.image_backbone.proj", lambda x: None)
    functions = problem.functions()
    found = importing.read(written(tmp_path / "x.pt", tensors), functions)
    assert found.query.keys() == functions.abstract.keys()
    tensors["backbone.image_backbone.other"] = torch.zeros(2)
    with pytest.raises(UserError, match=r"1 not part of the model: backbone.image_backbone.other"):
        importing.read(written(tmp_path / "y.pt", tensors), functions)


def test_another_size_and_a_resnet_are_named(tmp_path):
    place = written(tmp_path / "x.pt", state(1))
    with pytest.raises(
        UserError, match=r"is of model.tower=vit-32-8-.*, but .*model.tower=ViT-B/16"
    ):
        importing.read(place, problem.functions("ViT-B/16", 0))
    resnet = {f"backbone.clip.{n}": x for n, x in published.state(published.RESNET).items()}
    torch.save(
        {
            "state_dict": {
                **resnet,
                "backbone.tokenlearn.tokenizers.0.conv.0.weight": torch.zeros(1, 32, 1),
            }
        },
        place,
    )
    with pytest.raises(UserError, match=r"is a TG-CIR with a ResNet, .*: give such a run"):
        importing.read(place, problem.functions())


def test_a_clip_to_start_from(tmp_path):
    functions = problem.functions(published.VIT, 0)
    place = published.write("openai", tmp_path, published.state())
    found = weights.load(str(place), functions, seed=3)
    clip = importing.read(place, published.functions())
    assert all(np.array_equal(found.query[p], x) for p, x in clip.query.items())
    new = functions.abstract.keys() - clip.query.keys()
    assert all(weights.may_be_new(functions, p) for p in new)
    assert not any(weights.may_be_new(functions, p) for p in clip.query)
    np.testing.assert_array_equal(found.query["masks"], tgcir._masks(32))
    with pytest.raises(
        UserError, match=r"lacks gate/fc1/bias, gate/fc1/kernel, .* the file that h"
    ):
        weights.load(str(place), functions)
    # Only one with a ViT; alone it is the other model's.
    source = sources.open_source(place)
    assert {name for name, layout, _ in identify.candidates(source)} >= {"clip_sum", "tgcir"}
    assert identify.sole_model([source]) == "clip_sum"
    resnet = published.write(
        "openai", tmp_path / "r", published.state(published.RESNET), published.RESNET
    )
    with pytest.raises(UserError, match=r"holds no weights of tgcir, .* model.name=clip_sum \(Op"):
        identify.find(sources.open_source(resnet), "tgcir")


def unread(shape):
    def never():
        raise AssertionError("a value was read")

    return Tensor(shape, "float16", never)


@pytest.mark.parametrize("stage, count", [(1, 489), (2, 505)])
def test_every_tensor_of_the_published_files_has_its_place(stage, count):
    with torch.device("meta"):
        network = torch_tgcir.TgCir(sizes.find("ViT-B/16"), stage=stage)
    need = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    assert len(need) == count
    parameters = sum(x.numel() for x in network.parameters())
    assert parameters == {1: 151_865_376 - 4_104 - 2_048 + 1, 2: 151_865_376}[stage]
    trained = sum(x.numel() for x in network.parameters() if x.requires_grad)
    assert trained == {1: parameters, 2: 65_272_856}[stage]
    heads = [n for n in need if n.endswith("tokenizers.7.conv.0.weight")]
    assert len(heads) == stage and {need[n] for n in heads} == {(1, 512, 1)}

    tensors = {name: unread(shape) for name, shape in need.items()}
    source = sources.Source(None, "torch", {"state_dict": tensors}, values=BESIDE[stage])
    layout, found = identify.find(source, "tgcir")
    assert layout.name == NAMES[stage] and found.config == {"tower": "ViT-B/16", "context": 0}
    assert identify.sole_model([source]) == "tgcir"
    functions = problem.functions("ViT-B/16", 0)
    trees = [rules(functions.config) for rules in (layout.rules, layout.index_rules)]
    parts = [tables.leaves(rules, functions.abstract) for rules in trees]
    assert parts[0].keys() == functions.abstract.keys()
    assert parts[1].keys() == (SHARED if stage == 2 else set())
    table = {}
    for rules, part in zip(trees, parts, strict=True):
        table |= tables.expand(rules, part)
    copied = tied.names(layout.copied, table)
    own = {name: x for name, x in tensors.items() if name not in copied}
    tables.check(table, functions.abstract, own, layout.ignored, "ViT-B/16")
    assert len(copied) == 152 and set(copied) < set(tensors)
    left = set(tensors) - table.keys() - set(copied)
    assert left == ({"loss_T"} if stage == 1 else set())


def test_a_part_of_the_model_is_written_only_as_the_clip_it_is():
    assert list(exporting.formats("tgcir")) == [
        "safetensors", "tgcir", "tgcir_spn", "huggingface", "metaclip2", "open_clip",
        "open_clip_custom_text", "openai", "siglip", "tipsv2",
    ]  # fmt: skip


def test_the_temperature_that_a_run_ended_with_is_written(tmp_path):
    weights, place = problem.weights(), tmp_path / "out.pt"
    learned = weights.query | {"loss/temperature": np.float32(0.05)}
    exporting.write(place, problem.functions(), weights.index, learned, layout="tgcir")
    assert torch.load(place)["state_dict"]["loss_T"].tolist() == pytest.approx([20.0])


def test_a_file_of_stage_one_with_other_copies_for_texts_says_what_is_taken(tmp_path, capsys):
    tensors = state(2)
    del tensors["backbone.masks_text.weight"]
    torch.save({"state_dict": tensors}, tmp_path / "x.pt")
    assert importing.read(tmp_path / "x.pt", problem.functions()).record["layout"] == "tgcir"
    assert "for texts are not those for images" in capsys.readouterr().out
