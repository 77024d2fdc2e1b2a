# SPDX-License-Identifier: Apache-2.0
"""EmbeddingGemma 2 against transformers: vectors, weights in and out, wrong files, full size."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model, EmbeddingGemma2TextModel

from cir_jax import config, contract
from cir_jax.convert import exporting, identify, importing, sources, tables
from cir_jax.data.pixels import Preprocess
from cir_jax.errors import UserError
from cir_jax.models import gemma_embedding
from cir_jax.models.gemma_embedding.model import encoder_of
from cir_jax.towers.gemma import huggingface, sizes, weight_rules
from cir_jax.towers.inputs import Inputs
from tests.convert import gemma_files
from tests.convert.gemma_files import IMAGE

# With an image first, in the middle, and last; short and long.
TEXTS = ([2, IMAGE, 14, 17, 1], [2, 12, 13, IMAGE, 30, 31, 32, 33, 1], [2, IMAGE, 1])
PLAIN = ([2, 11, 1], [2, *range(10, 36), 1], [2, 40, 40, 40, 1])  # one longer than the window
LENGTH = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As transformers saves it, with a tokenizer and the image processor."""
    path = tmp_path_factory.mktemp("gemma") / "folder"
    gemma_files.shared().save_pretrained(path)
    gemma_files.image_processor().save_pretrained(path)
    gemma_files.write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def params(folder):
    return importing.read(folder, gemma_files.functions(folder)).query


@pytest.fixture(scope="module")
def made(folder, params):
    """What our model makes of the pictures: their soft tokens, and vectors of them alone."""
    ours, pictures = gemma_files.functions(folder), gemma_files.squares(3)
    rows = jax.jit(ours.reference)(params, pictures, None)
    return np.asarray(rows), np.asarray(jax.jit(ours.target)(params, pictures))


def padded(texts):
    return np.array([[*text, *[0] * (LENGTH - len(text))] for text in texts], np.int32)


def test_vectors_of_image_and_text_are_those_of_transformers(folder, params, made):
    pictures, model = gemma_files.squares(3), gemma_files.shared()
    rows, target = made
    seen = gemma_files.image_processor()(list(pictures), return_tensors="pt")
    with torch.no_grad():
        soft = model.get_image_features(seen["pixel_values"], seen["image_position_ids"])
    want = torch.stack(soft.pooler_output).numpy()
    assert rows.shape == want.shape == (3, 64, 16)
    np.testing.assert_allclose(rows, want, atol=1e-5)

    compose = jax.jit(gemma_files.functions(folder).compose)
    both = compose(params, rows, padded(TEXTS))
    want = gemma_files.unit(gemma_files.theirs(model, TEXTS, pictures))
    np.testing.assert_allclose(both, want, atol=1e-5)
    assert np.abs(want[0] - want[1]).max() > 0.01  # vectors do differ

    want = gemma_files.unit(gemma_files.theirs(model, [[2, IMAGE, 1]] * 3, pictures))
    np.testing.assert_allclose(target[:, 0], want, atol=1e-5)
    np.testing.assert_allclose(both[2], target[2, 0], atol=1e-6)  # an image alone is a target

    want = gemma_files.unit(gemma_files.theirs(model, PLAIN))
    np.testing.assert_allclose(compose(params, rows, padded(PLAIN)), want, atol=1e-5)
    # Without an image its token goes as well.
    alone = compose(params, 0 * rows, padded([[2, IMAGE, *text[1:]] for text in PLAIN]))
    np.testing.assert_allclose(alone, want, atol=1e-5)


def test_bfloat16_is_near_and_float16_is_refused(folder, params, made):
    half = gemma_files.functions(folder, "model.dtype=bfloat16")
    target = np.asarray(jax.jit(half.target)(params, gemma_files.squares(3)))
    near = (target * made[1]).sum(axis=(1, 2))
    assert (near > 0.98).all() and (near < 1 - 1e-7).any(), near
    with pytest.raises(
        UserError, match=r"model.dtype='float16' is unknown; use auto, float32 or b"
    ):
        config.load("gemma_embedding:fashioniq", ["model.dtype=float16"])


def test_squares_are_made_as_the_processor_of_transformers_makes_them():
    """Of a square of another side; both round once, by Pillow."""
    picture = Image.fromarray(gemma_files.squares(1, 100)[0])
    found = gemma_files.image_processor()([picture], return_tensors="np")
    assert list(found["num_soft_tokens_per_image"]) == [gemma_files.SIZE.vision.rows]
    theirs = found["pixel_values"][0][: 24 * 24].reshape(24, 24, 2, 2, 3)
    theirs = 255 * theirs.transpose(0, 2, 1, 3, 4).reshape(48, 48, 3)
    ours = Preprocess(48, "squash")(picture)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_transformers_reads_what_is_written_and_makes_the_same_vectors(folder, params, tmp_path):
    source = sources.open_source(folder)
    assert identify.sole_model([source]) == "gemma_embedding"
    found = identify.find(source, "gemma_embedding")[1]
    assert found.config == {"tower": gemma_files.TOWER, "image_ids": (2, IMAGE, 1)}
    assert found.inputs["tokenizer"] == str(folder)
    weights = importing.read(folder, gemma_files.functions(folder))
    out = tmp_path / "out"
    options = {"layout": "huggingface", "record": weights.record, "files": weights.files}
    exporting.write(out, gemma_files.functions(folder), params, params, **options)
    loaded, info = EmbeddingGemma2Model.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and loaded.audio_tower is None
    held = gemma_files.shared().state_dict()
    got = loaded.state_dict()
    assert held.keys() == got.keys() and all(torch.equal(held[n], got[n]) for n in held)
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert huggingface.image_settings(out)["max_soft_tokens"] == 70
    again = importing.read(out, gemma_files.functions(folder))
    assert all(np.array_equal(again.query[p], x) for p, x in params.items())
    wanted = gemma_files.theirs(gemma_files.shared(), TEXTS, gemma_files.squares(3))
    loaded.config._attn_implementation = "eager"
    np.testing.assert_allclose(
        gemma_files.theirs(loaded.eval(), TEXTS, gemma_files.squares(3)), wanted, atol=1e-6
    )


def test_an_export_of_stage_two_has_the_encoder_of_the_index_beside_it(folder, params, tmp_path):
    trained = {p: x + 0.5 if p.startswith("text/periods") else x for p, x in params.items()}
    trained |= {p: params[p] for p in params if p.endswith("/factor")}
    ours = gemma_files.functions(folder)
    exporting.write(tmp_path / "out", ours, params, trained, layout="huggingface")
    text, info = EmbeddingGemma2TextModel.from_pretrained(
        tmp_path / "out" / "index_text", output_loading_info=True
    )
    assert not any(info.values())
    held = gemma_files.shared().language_model.state_dict()
    assert all(torch.equal(held[n], x) for n, x in text.state_dict().items())
    again = importing.read(tmp_path / "out", ours)
    for path, value in params.items():
        np.testing.assert_array_equal(again.index[path], value)
        np.testing.assert_array_equal(again.query[path], trained[path])
    exporting.write(tmp_path / "one", ours, params, trained, layout="huggingface", tree="index")
    assert not (tmp_path / "one" / "index_text").exists()
    with pytest.raises(UserError, match=r"index_text of an earlier export .* give another folder"):
        exporting.write(tmp_path / "out", ours, params, params, layout="huggingface")


def test_the_audio_encoder_is_left_and_a_text_model_refused(folder, params, tmp_path):
    ours = gemma_files.functions(folder)
    shutil.copytree(folder, tmp_path / "folder")
    file = tmp_path / "folder" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"audio_tower.x": torch.ones(2)}, file)
    assert importing.read(tmp_path / "folder", ours).query.keys() == params.keys()
    save_file({n: x for n, x in tensors.items() if n.startswith("language_model")}, file)
    with pytest.raises(UserError, match=r"29 missing: vision_tower.encoder.la"):
        importing.read(tmp_path / "folder", ours)
    gemma_files.shared().language_model.save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match=r"holds no weights of gemma_embedding"):
        importing.read(tmp_path / "text", ours)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"it is cut; fetch the file again"):
        importing.read(tmp_path / "folder", ours)


def changed(folder, tmp_path, name, change):
    """The folder with one of its JSON files changed."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    held = json.loads((tmp_path / name).read_text())
    change(held)
    (tmp_path / name).write_text(json.dumps(held))
    return sources.open_source(tmp_path)


def within(part, **values):
    return lambda held: held[part].update(values)


BOTH = {"rope_type": "axial", "rope_theta": 10.0}
WAVES = {"rope_type": "default", "rope_theta": 5.0}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", within("vision_config", use_clipped_linears=True), "use_clipped_linears=T"),
        ("config.json", within("vision_config", standardize=True), r"standardize=True \(here Fal"),
        ("config.json", within("vision_config", rope_parameters=BOTH), r"'rope_theta': 10.0.* 100"),
        ("config.json", within("text_config", hidden_activation="silu"), "activation='silu'"),
        (
            "config.json",
            within("text_config", layer_types=["full_attention"] * 2 + ["sliding_attention"] * 3
                   + ["full_attention"]),
            "a global one behind each 0",
        ),
        (
            "config.json",
            within("text_config", rope_parameters={"full_attention": WAVES,
                                                   "sliding_attention": WAVES}),
            r"rope_parameters\['sliding_attention'\].*here .*10000.0",
        ),
        ("config.json", lambda held: held.update(vision_config=None), "read texts alone"),
        ("config.json", lambda held: held.update(model_type="gemma4"), "an EmbeddingGemma 2 is ne"),
        ("config.json", within("text_config", num_attention_heads="4"), "refused by transformers"),
        (
            "preprocessor_config.json",
            lambda held: held.update(max_soft_tokens=99),
            "max_soft_tokens=99; there are 70, 140",
        ),
        (
            "preprocessor_config.json",
            lambda held: held.update(do_normalize=True, resample=2),
            r"do_normalize=True \(here False\); resample=2 \(here 3\): other pixels",
        ),
    ],
)  # fmt: skip
def test_files_of_another_function_are_refused(folder, tmp_path, name, change, message):
    with pytest.raises(UserError, match=message):
        identify.find(changed(folder, tmp_path, name, change), "gemma_embedding")


def test_the_tokenizer_is_that_of_the_weights(folder, tmp_path):
    def tokenizer(*changes):
        base = ["model.name=gemma_embedding", f"model.tower={gemma_files.TOWER}", *changes]
        model = config.load("base", base).model
        return Inputs(gemma_embedding, model, encoder_of(model)).tokenizer

    there = f"model.tokenizer={folder}"
    texts = ["red dress", "", " not a  dress"]
    made = gemma_files.write_tokenizer(tmp_path / "same")
    want = [made.encode(f"<|image|>{text}").ids for text in texts]
    assert tokenizer(there).encode(texts) == want
    assert [row[1] for row in want] == [IMAGE] * 3
    want = [made.encode(f"a {text} <|image|>b").ids for text in texts]
    assert tokenizer(there, "model.prompt=a {text} <|image|>b").encode(texts) == want
    with pytest.raises(UserError, match=r"has the token <\|image\|>, in whose place an image goes"):
        tokenizer(there).encode(["red", "<|image|>red"])
    for prompt, wrong in (("{text}", r"has <\|image\|> 0 times"), ("<|image|>", "{text} 0 times")):
        with pytest.raises(UserError, match=wrong):
            tokenizer(there, f"model.prompt={prompt}")
    with pytest.raises(UserError, match=r"none is known; name the folder .* model.tokenizer="):
        tokenizer()


def test_what_the_tokenizer_says_of_an_image_alone(folder, tmp_path):
    def with_tokenizer(**options):
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        gemma_files.write_tokenizer(tmp_path, **options)
        return identify.find(sources.open_source(tmp_path), "gemma_embedding")[1]

    found = with_tokenizer(end=False)
    assert found.config["image_ids"] == (2, IMAGE)
    assert not found.fits("image_ids", ()) and found.fits("image_ids", (2, IMAGE))
    assert with_tokenizer().fits("image_ids", ())
    with pytest.raises(UserError, match=r"<\|image\|> is token 50 of the tokenizer and 61 of conf"):
        with_tokenizer(image=50)
    (tmp_path / "tokenizer.json").unlink()
    assert (
        "image_ids" not in identify.find(sources.open_source(tmp_path), "gemma_embedding")[1].config
    )


def test_what_is_not_written(folder, params, tmp_path):
    ours = gemma_files.functions(folder)
    with pytest.raises(UserError, match=r"float16 .* gives no numbers; write --dtype bfloat16"):
        exporting.write(tmp_path, ours, params, params, layout="huggingface", dtype="float16")
    other = gemma_files.functions("", "model.image_size=24")
    with pytest.raises(
        UserError, match=r"makes squares of 48, 66, 96, 138, 198 pixels .* is of 24"
    ):
        exporting.write(tmp_path, other, params, params, layout="huggingface")
    exporting.write(tmp_path, ours, params, params, layout="huggingface", dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_full_size_is_that_of_transformers():
    """Parameter counts and the shape of every tensor; no memory is taken."""
    size = sizes.SIZES["embeddinggemma-2"]
    with torch.device("meta"):
        defaults = EmbeddingGemma2Config(vision_config={}, audio_config=None)
        model = EmbeddingGemma2Model(defaults)
    count = sum(x.numel() for x in model.parameters())
    assert count == sizes.parameters(size)
    written = EmbeddingGemma2Config.from_dict(huggingface.config_of(size))
    with torch.device("meta"):
        again = EmbeddingGemma2Model(written)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert {n: tuple(x.shape) for n, x in again.state_dict().items()} == shapes
    whole = contract.build(config.load("gemma_embedding:fashioniq").model)
    table = tables.expand(weight_rules.huggingface(size), whole.abstract)
    assert tables.shapes(table, whole.abstract) == shapes
    train = [p for p in whole.abstract if whole.roles[p] != "statistic"]
    assert sum(whole.abstract[p].size for p in train) == count
    assert (whole.reference_shape, whole.target_shape) == ((256, 512), (1, 768))
    assert whole.image_size == huggingface.side_of(280, 16, 3) == 768
