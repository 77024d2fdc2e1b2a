# SPDX-License-Identifier: Apache-2.0
"""SigLIP in and out: folders of transformers, runs, files of ours; what comes in with weights is
recorded, goes out again, and is refused where it is another."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    PreTrainedTokenizerFast,
    SiglipModel,
    SiglipTextModel,
    SiglipTokenizer,
)

import cir_jax
from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.convert import exporting, importing
from cir_jax.data import tokenizer_files
from cir_jax.errors import UserError
from cir_jax.retrieval import golden, load
from cir_jax.towers.layers import unit
from tests import siglip_folders, tokenizer_folders

TEXTS = ["is Red, too", "a thing"]


@pytest.fixture(scope="module")
def theirs():
    return siglip_folders.model()


@pytest.fixture(scope="module")
def folders(theirs, tmp_path_factory):
    """Generation -> a folder as it is published."""
    root = tmp_path_factory.mktemp("folders")
    return {n: siglip_folders.write(root / f"siglip{n}", n, theirs) for n in (1, 2)}


@pytest.fixture
def folder(folders, tmp_path):
    shutil.copytree(folders[2], tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def imported(folders, tmp_path_factory):
    """(config, functions, weights, run folder) of SigLIP 2's folder."""
    config, known = load.config_of([str(folders[2])], "clip_sum", overrides=["model.dtype=float32"])
    assert known
    functions = contract.build(config.model)
    loaded = weights.load(str(folders[2]), functions)
    run = tmp_path_factory.mktemp("run")
    weights.save_run(run, config, functions, loaded)
    return config, functions, loaded, run


@pytest.mark.parametrize("generation", [1, 2])
def test_vectors_of_files_are_those_of_transformers(theirs, folders, generation, tmp_path):
    """From image file and text to unit vectors: its own tokenizer, pixels, towers and pooling."""
    values = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    model = cir_jax.load(folders[generation], model="clip_sum", dtype="float32")
    assert model.pad == "squash" and model.tower == siglip_folders.TOWERS[generation]
    rows = model.encode_images([tmp_path / "a.png"])[0, 0]
    queries = model.encode_queries(None, TEXTS)
    processor = AutoImageProcessor.from_pretrained(folders[generation])
    shown = processor(Image.fromarray(values), return_tensors="pt")["pixel_values"]
    ids = theirs_ids(folders[generation], generation)
    with torch.no_grad():
        image = theirs.get_image_features(shown).pooler_output[0].numpy()
        text = theirs.get_text_features(torch.tensor(ids)).pooler_output.numpy()
    # Pillow and torchvision round a resized value otherwise, by one level of 255.
    np.testing.assert_allclose(rows, np.asarray(unit(image)), atol=5e-3)
    np.testing.assert_allclose(queries, np.asarray(unit(text)), atol=2e-6)


def theirs_ids(folder, generation):
    asked = {"padding": "max_length", "truncation": True, "max_length": 16}
    if generation == 1:
        return SiglipTokenizer.from_pretrained(folder)(TEXTS, **asked)["input_ids"]
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    return theirs([text.lower() for text in TEXTS], **asked)["input_ids"]


def test_a_run_is_whole_and_says_what_came_with_the_weights(imported, folders, tmp_path):
    config, _, _, run = imported
    model = config.model
    assert (model.tower, config.data.pad) == ("tiny-siglip2", "squash")
    content = tokenizer_files.checksum(tokenizer_files.read(folders[2]))
    assert (model.tokenizer, model.tokenizer_content) == (str(folders[2]), content)
    # Moved, it takes its tokenizer along; another content is refused.
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    held = weights.config_of(moved)
    assert held.model.tokenizer == str(moved / "tokenizer")
    assert held.model.tokenizer_content == content
    again = cir_jax.load(moved)
    first = cir_jax.load(folders[2], model="clip_sum", dtype="float32")
    assert again.identity() == first.identity() and again.identity()["tokenizer"] == content
    assert golden.differences(again.golden(), first.golden()) == []
    tokenizer_folders.gemma(moved / "tokenizer", model_max_length=12)
    with pytest.raises(UserError, match=r"moved/tokenizer: the tokenizer there .* is not the one"):
        cir_jax.load(moved)
    shutil.rmtree(moved / "tokenizer")
    with pytest.raises(UserError, match="holds no tokenizer"):
        cir_jax.load(moved)


def test_a_file_of_ours_holds_the_tokenizer(imported, tmp_path):
    run = imported[3]
    model = cir_jax.load(run)
    file = model.save(tmp_path / "one.safetensors")
    alone = tmp_path / "elsewhere" / "two.safetensors"
    alone.parent.mkdir()
    shutil.move(file, alone)
    again = cir_jax.load(alone)
    assert again.identity() == model.identity()
    np.testing.assert_array_equal(
        again.encode_queries(None, TEXTS), model.encode_queries(None, TEXTS)
    )
    # And gives it on, to a folder of transformers.
    functions, query = again._functions, again._query
    exporting.write(tmp_path / "out", functions, again._index, query, layout="siglip")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_weights_go_out_as_they_came(theirs, imported, folders, tmp_path):
    _, functions, loaded, _ = imported
    query = loaded.query | {"text/head/bias": loaded.query["text/head/bias"] + 1}
    query["text/head/kernel"] = loaded.query["text/head/kernel"] * 2
    out = tmp_path / "out"
    exporting.write(out, functions, loaded.index, query, layout="siglip", files=loaded.files)
    again = SiglipModel.from_pretrained(out).eval()
    state, before = again.state_dict(), theirs.state_dict()
    for name, value in state.items():
        changed = {"text_model.head.bias": (1, 1), "text_model.head.weight": (2, 0)}
        factor, more = changed.get(name, (1, 0))
        torch.testing.assert_close(value, factor * before[name] + more, rtol=0, atol=1e-6)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (out / name).read_bytes() == (folders[2] / name).read_bytes()
    # The index kept its text tower, which lies beside the model.
    text = SiglipTextModel.from_pretrained(out / "index_text")
    kept = text.state_dict()["head.bias"]
    torch.testing.assert_close(kept, before["text_model.head.bias"])
    read = importing.read(out, functions)
    np.testing.assert_array_equal(read.query["text/head/bias"], query["text/head/bias"])
    np.testing.assert_array_equal(read.index["text/head/bias"], loaded.index["text/head/bias"])


def test_other_pixels_come_in_and_go_out_again(folder, tmp_path):
    edit(folder, "preprocessor_config.json", image_mean=[0.4, 0.5, 0.6], resample=3)
    model = cir_jax.load(folder, model="clip_sum", dtype="float32")
    said = model.config.model
    assert (said.pixel_mean, said.pixel_deviation, said.interpolation) == (
        (0.4, 0.5, 0.6), (), "bicubic",
    )  # fmt: skip
    assert "bicubic" in model.preprocess.fingerprint()
    assert "mean=0.4,0.5,0.6 deviation=0.5" in model.preprocess.fingerprint()
    file = model.save(tmp_path / "one.safetensors")
    again = cir_jax.load(file)
    assert again.identity() == model.identity()
    out = tmp_path / "out"
    exporting.write(out, again._functions, again._index, again._query, layout="siglip")
    written = json.loads((out / "preprocessor_config.json").read_text())
    assert (written["image_mean"], written["resample"]) == ([0.4, 0.5, 0.6], 3)
    other = cir_jax.load(out, model="clip_sum", dtype="float32")
    assert other.identity() == model.identity()


def edit(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def nested(part, **changes):
    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        content[part] |= changes
        (folder / "config.json").write_text(json.dumps(content))

    return change


WRONG = {
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "has no preprocessor_c"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json was given"),
    "NaFlex": (lambda f: edit(f, "config.json", model_type="siglip2"), r"\(NaFlex\)"),
    "vision alone": (
        lambda f: edit(f, "config.json", architectures=["SiglipVisionModel"]), "the whole of a Sig",
    ),
    "another side": (
        lambda f: edit(f, "preprocessor_config.json", size={"height": 64, "width": 64}),
        "where the model has 32 pixels",
    ),
    "lanczos": (lambda f: edit(f, "preprocessor_config.json", resample=1), "resample=1, and"),
    "another activation": (
        nested("text_config", hidden_act="gelu"), "text_config.hidden_act='gelu'",
    ),
    "no head": (nested("vision_config", vision_use_head=False), "vision_use_head=False"),
    "quantized": (
        lambda f: edit(f, "config.json", quantization_config={"bits": 4}), "are not floats",
    ),
    "another embedding": (nested("text_config", projection_size=32), "an embedding of 32"),
    "another tokenizer": (
        lambda f: tokenizer_folders.gemma(f, pad="<unk>"), "fills texts up with 3; SigLIP's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_siglip_of_ours(folder, case):
    change, why = WRONG[case]
    change(folder)
    with pytest.raises(UserError, match=why):
        load.config_of([str(folder)], "clip_sum")


@pytest.mark.parametrize(
    "change, why",
    [
        ("model.pixel_mean=0.1,0.2,0.3", r"trained with model.pixel_mean=that of the tower, not"),
        ("model.interpolation=bicubic", r"model.interpolation=that of the tower, not 'bicubic'"),
        ("model.tokenizer=OTHER", r"model.tokenizer_content='\w+', not"),
    ],
)
def test_what_is_set_by_hand_against_the_weights(folders, tmp_path, change, why):
    other = tokenizer_folders.gemma(tmp_path / "other", model_max_length=12)
    with pytest.raises(UserError, match=why):
        load.config_of(
            [str(folders[2])], "clip_sum", overrides=[change.replace("OTHER", str(other))]
        )


def test_a_tokenizer_of_its_own_is_no_clips(tmp_path):
    config = configs.load("base", ["model.tower=tiny-vit", f"model.tokenizer={tmp_path}"])
    with pytest.raises(UserError, match="reads texts by 'clip', which is part of"):
        _ = contract.build(config.model).inputs.tokenizer


def test_a_model_that_names_clips_tokenizer_refuses_another_tower(tmp_path):
    name = tmp_path / "mine.py"
    name.write_text(
        "from cir_jax.models.clip_sum import Model, image_size, roles, sharding\n"
        "TOKENIZER, CUT_PADDING, REFERENCE_ROWS = 'clip', True, 'per_image'\n"
    )
    config = configs.load("base", [f"model.name={name}", "model.tower=tiny-siglip"])
    with pytest.raises(UserError, match=r"TOKENIZER = 'clip', not 'file'.*CUT_PADDING = True"):
        contract.build(config.model)
