# SPDX-License-Identifier: Apache-2.0
"""What `cir_jax.load` takes from files of every layout, and which argument it asks for."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval

import cir_jax
from cir_jax import UserError, main
from cir_jax.convert import exporting, importing
from cir_jax.towers.blip2 import huggingface
from tests.convert import blip_files, published, published_sprc
from tests.convert.published import RESNET, VIT
from tests.models import tgcir_problem
from tests.training.test_init_from import combiner

GELU = VIT + "+gelu"


def says(model):
    return model.name, model.tower, model.pad


def refused(message, *arguments, **options):
    with pytest.raises(UserError, match=message):
        cir_jax.load(*arguments, **options)


@pytest.mark.parametrize(
    "layout, pad",
    [("spn", "target"), ("clip4cir", "target"), ("huggingface", "none"), ("open_clip", "none")],
)
def test_a_clip_says_it_all_and_is_the_sum(layout, pad, tmp_path):
    tower = GELU if layout == "open_clip" else VIT
    place = published.write(layout, tmp_path, published.state(), tower)
    model = cir_jax.load(place)
    assert says(model) == ("clip_sum", tower, pad)
    assert model.config.data.target_ratio == 1.25
    assert says(cir_jax.load([place], pad="square")) == ("clip_sum", tower, "square")


def test_the_archive_of_openai(tmp_path):
    place = published.torchscript(tmp_path / "RN.pt", RESNET)
    assert says(cir_jax.load(place)) == ("clip_sum", RESNET, "none")


def test_released_runs_of_the_other_models(tmp_path):
    file = tmp_path / "x.pt"
    for stage, beside in ((1, {}), (2, {"epoch": 3})):
        tgcir_problem.saved(file, tgcir_problem.theirs(stage), **beside)
        assert says(cir_jax.load(file)) == ("tgcir", tgcir_problem.TOWER, "none")
    for content in (
        {"BLIP_Retrieval": blip_files.state(blip_files.shared())},
        blip_files.as_released(blip_files.shared()),
    ):
        torch.save(content, file)
        assert says(cir_jax.load(file)) == ("blip", blip_files.TOWER, "target")
    with pytest.raises(UserError, match=r"^blip composes a text with what it sees"):
        cir_jax.load(file).encode_queries(None, ["red"])
    second = published_sprc.network(second=True).state_dict()
    torch.save({"epoch": 3, "state_dict": {f"blip_model.{n}": x for n, x in second.items()}}, file)
    # As everywhere, heads are of 64 channels where a file does not say it.
    tower = published_sprc.TOWER.replace("-h2", "-h1")
    assert says(cir_jax.load(file)) == ("sprc", tower, "target")


def test_a_combiner_and_its_clip(tmp_path):
    clip = published.write("clip4cir", tmp_path, published.state())
    file, _ = combiner(tmp_path / "combiner.pt")
    for places in ((clip, file), [str(file), str(clip)]):
        assert says(cir_jax.load(places)) == ("clip_combiner", VIT, "target")
    refused(r"combiner.pt is of no whole model .* a part of clip_combiner: give a list of", file)
    refused(r"does not say the size of the encoders of clip_comb", file, model="clip_combiner")
    refused(r"clip4cir.pt holds no combiner/.* of clip_combiner \(12 leaves in all\): weights to",
            clip, model="clip_combiner")  # fmt: skip
    refused(r"could be of any of clip_combiner, clip_sum, clip_weighted, tgcir; say which, model=",
            [clip] * 2)  # fmt: skip
    refused(r"clip4cir.pt holds no head/.* of clip_weighted \(4 leaves in all\): weights to",
            clip, model="clip_weighted")  # fmt: skip
    # One says that images are padded, the other that they are not.
    plain = published.write("huggingface", tmp_path / "h", published.state())
    refused(r"h, .*combiner.pt does not say how images become squares; give pad=", [plain, file])
    assert says(cir_jax.load([plain, file], pad="none")) == ("clip_combiner", VIT, "none")


def test_a_run_and_a_file_of_one_model(tmp_path):
    clip = published.write("clip4cir", tmp_path, published.state())
    file, _ = combiner(tmp_path / "combiner.pt")
    run = tmp_path / "run"
    assert main.main(["import", str(clip), str(run), "--set", "data.text_lengths=7,77"]) == 0
    refused(r"run is a run among several places; .* model='clip_combiner'", [run, file])
    model = cir_jax.load([run, file], model="clip_combiner")
    assert says(model) == ("clip_combiner", VIT, "target")
    assert model.config.data.text_lengths == (7, 77)
    refused(r"differ .*give model.name and model.tower as that run has them", run, tower=RESNET)


@pytest.mark.parametrize("layout", ["openai", "state_dict"])
def test_a_bare_state_dict_must_be_told_activation_and_padding(layout, tmp_path):
    tensors = published.state()
    tensors["positional_embedding"] = tensors["positional_embedding"][:32]  # read from the file
    place = published.write("openai", tmp_path, tensors)
    if layout == "state_dict":
        torch.save({"epoch": 1, "state_dict": tensors}, place)
    refused(rf"QuickGELU .* tower='{VIT}' or tower='{VIT}\+gelu'; and pad='target' \(padded", place)
    refused(r"openai.pt does not say how images become squares; give pad=", place, tower=VIT)
    refused(r"Say it, tower=", place, pad="none")
    for tower in (VIT, GELU):
        model = cir_jax.load(place, tower=tower, pad="none")
        assert says(model) == ("clip_sum", tower, "none") and model.config.model.context == 32


def test_arguments_that_do_not_agree_with_the_files(tmp_path):
    place = published.write("spn", tmp_path, published.state())
    refused(rf"spn.pt is of tower '{VIT}', not tower='{RESNET}'; leave it out", place, tower=RESNET)
    assert cir_jax.load(place, tower=VIT).tower == VIT
    refused(r"no tower 'ViT-B/23'; .* Did you mean 'ViT-B/32'", place, tower="ViT-B/23")
    refused(r"pad='padded' is unknown; give pad='target'", place, pad="padded")
    refused(r"holds no weights of blip, .* It looks like model.name=clip_com", place, model="blip")
    refused(r"no 'clip_some' in models; .* Did you mean 'clip_sum'", place, model="clip_some")
    refused(r"none.pt does not exist; give a file of weights", tmp_path / "none.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    refused(r"is of no whole model here \(a state dict of 1 tensors .* model='", tmp_path / "a.pt")


def test_configs_that_crop_otherwise(tmp_path):
    place = published.write("open_clip", tmp_path / "o", published.state())
    file = place / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["preprocess_cfg"]["resize_mode"] = "squash"
    file.write_text(json.dumps(content))
    refused(r"o does not say how images become squares; give pad='target'", place)
    assert cir_jax.load(place, pad="square").pad == "square"
    place = published.write("huggingface", tmp_path / "h", published.state())
    published.huggingface.write_processor(place, published.sizes.find(VIT), 77, [])
    assert cir_jax.load(place).pad == "none"
    file = place / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_center_crop": False}))
    refused(r"h does not say how images become squares", place)


def test_pretrained_models_are_no_retrievers_yet(tmp_path):
    blip2 = Blip2ForImageTextRetrieval(Blip2Config(**huggingface.config_of(published_sprc.SIZE)))
    blip2.save_pretrained(tmp_path / "blip2")
    refused(r"blip2 holds no prompt_tokens of sprc \(1 leaves in all\): weights to train from.",
            tmp_path / "blip2")  # fmt: skip
    blip_files.shared().save_pretrained(tmp_path / "blip")
    refused(r"blip does not say how images become squares; give pad=", tmp_path / "blip")
    assert says(cir_jax.load(tmp_path / "blip", pad="target"))[::2] == ("blip", "target")


def test_our_own_files(tmp_path):
    functions = published.functions()
    params = {p: np.asarray(x) for p, x in functions.init(0).items()}
    file = tmp_path / "x.safetensors"
    exporting.write(file, functions, params, params, layout="safetensors")  # as version 0.1.0 did
    assert importing.read(file, functions).query.keys() == params.keys()
    refused(r"x.safetensors does not say how images become squares; give pad='target'", file)
    assert says(cir_jax.load(file, pad="none")) == ("clip_sum", VIT, "none")
    model = {"name": "clip_sum", "tower": VIT, "context": 0, "image_size": 0}
    data = {"pad": "none", "target_ratio": 1.25, "text_lengths": [77], "on_long": "error"}
    for key, value in (("pad", 3), ("text_lengths", "77"), ("target_ratio", None)):
        metadata = {"cir_jax": json.dumps({"model": model, "data": data | {key: value}})}
        safetensors.torch.save_file({"a": torch.zeros(1)}, file, metadata)
        refused(rf"metadata are damaged \(ValueError\(.{key}=.*export it again", file)


def test_the_code_of_a_model_is_run_only_if_it_is_named(tmp_path):
    ran, first, second = (tmp_path / name for name in ("ran", "a/mine.py", "b/mine.py"))
    for file in (first, second):
        file.parent.mkdir()
        file.write_text(
            "from cir_jax.models.clip_sum import *\n"
            "from cir_jax.models.clip_sum import Model\n"
            f"__import__('pathlib').Path({str(ran)!r}).write_text(__file__)\n"
        )
    functions = published.functions(VIT, str(first))
    params = {p: np.asarray(x) for p, x in functions.init(0).items()}
    file = tmp_path / "x.safetensors"
    data = {"pad": "none", "target_ratio": 1.25, "text_lengths": (77,), "on_long": "error"}
    exporting.write(file, functions, params, params, layout="safetensors", data=data)
    ran.unlink()
    refused(r"is of the model '.*a/mine.py', whose code would be run; .*: model='mine.py'", file)
    assert not ran.exists()
    assert says(cir_jax.load(file, model=str(second))) == (str(second), VIT, "none")
    assert ran.read_text() == str(second)
