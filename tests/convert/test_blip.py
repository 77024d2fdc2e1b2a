# SPDX-License-Identifier: Apache-2.0
"""Weights of BLIP in and out: every layout, both directions; wrong files; full size by shapes."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BlipForImageTextRetrieval

from cir_jax.convert import exporting, identify, importing, sources, tables
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.data import tokens
from cir_jax.errors import UserError
from cir_jax.models.blip.layouts import LAYOUTS
from cir_jax.towers.blip import pos_embed
from cir_jax.towers.blip import weight_rules as blip_rules
from cir_jax.training.stage import TEMPERATURE
from tests.convert import blip_files
from tools import convert_weights

PIXELS = np.random.default_rng(0).normal(size=(2, 3, 24, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip") / "fiq_stage1.pt"
    torch.save({"BLIP_Retrieval": blip_files.state(blip_files.shared())}, path)
    return path


@pytest.fixture(scope="module")
def params(stage_one):
    return importing.read(stage_one, blip_files.functions()).query


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip") / "folder"
    blip_files.shared().save_pretrained(path)
    return path


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.shape == second[name].shape and value.dtype == second[name].dtype, name
        assert value.numpy().tobytes() == second[name].numpy().tobytes(), name


def write(place, params, layout, found=None, **options):
    """Exports parameters, with what is known of their import."""
    record = found.record if found else None
    functions = blip_files.functions()
    return exporting.write(
        place, functions, params, params, layout=layout, record=record, **options
    )


def test_stage_one_comes_back_byte_for_byte(stage_one, tmp_path):
    source = sources.open_source(stage_one)
    assert identify.sole_model([source]) == "blip"
    layout, found = identify.find(source, "blip")
    assert layout.name == "blip4cir"
    assert found.config == {"tower": blip_files.TOWER, "context": blip_files.CONTEXT}
    weights = importing.read(stage_one, blip_files.functions())
    assert weights.record["kept"] == {"temp": float(np.float32(0.04321))}
    write(tmp_path / "out.pt", weights.query, "blip4cir", weights)
    written = torch.load(tmp_path / "out.pt")
    assert written["epoch"] == 0
    same(blip_files.state(blip_files.shared()), written["BLIP_Retrieval"])


def test_best_pt_comes_back_byte_for_byte(params, tmp_path):
    released = blip_files.as_released(blip_files.shared())
    torch.save(released, tmp_path / "best.pt")
    assert identify.sole_model([sources.open_source(tmp_path / "best.pt")]) == "blip"
    weights = importing.read(tmp_path / "best.pt", blip_files.functions())
    assert weights.record["layout"] == "spn" and weights.record["values"] == {"epoch": 3}
    for path, value in params.items():
        np.testing.assert_array_equal(value, weights.query[path])
    write(tmp_path / "out.pt", weights.query, "spn", weights, epoch=3)
    written = torch.load(tmp_path / "out.pt")
    assert written["epoch"] == 3
    same(released["state_dict"], written["state_dict"])


def test_the_temperature_that_is_written(params, tmp_path):
    functions = blip_files.functions()

    def temperature(layout, name, query=params, **options):
        place = tmp_path / f"{layout}.pt"
        exporting.write(place, functions, params, query, layout=layout, **options)
        written = torch.load(place)
        return float(written["state_dict" if layout == "spn" else "BLIP_Retrieval"][name])

    learned = {**params, TEMPERATURE: np.float32(0.019)}
    options = {"record": {"kept": {"blip.temp": 0.5, "tau": 0.25}}, "temperature": 0.031}
    assert temperature("spn", "tau", learned, **options) == pytest.approx(0.019)
    assert temperature("spn", "tau", **options) == pytest.approx(0.031)
    assert temperature("spn", "blip.temp", **options) == 0.5
    assert temperature("spn", "tau", record=options["record"]) == 0.25
    assert temperature("blip4cir", "temp", learned) == pytest.approx(0.019)
    assert temperature("blip4cir", "temp") == pytest.approx(0.07)


def test_transformers_reads_and_writes_the_same_model(params, folder, tmp_path):
    source = sources.open_source(folder)
    assert identify.sole_model([source]) == "blip"
    weights = importing.read(folder, blip_files.functions())
    for path, value in params.items():
        np.testing.assert_array_equal(value, weights.query[path])
    out = tmp_path / "out"
    write(out, weights.query, "huggingface")
    loaded, info = BlipForImageTextRetrieval.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    theirs = blip_files.shared().state_dict()
    found = {n: x for n, x in loaded.state_dict().items() if not n.startswith("itm_head")}
    same({n: theirs[n] for n in found}, found)
    assert len(found) == len(theirs) - 2 and not loaded.itm_head.weight.any()
    with torch.no_grad():
        models = blip_files.shared(), loaded.eval()
        want, got = (m.vision_model(torch.from_numpy(PIXELS)).last_hidden_state for m in models)
    np.testing.assert_allclose(got, want, atol=1e-6)  # the same epsilon, too
    # A text becomes what our tokenizer makes of it; what was written can be read.
    texts = ["is darker and has, no", "café!"]
    ids = AutoTokenizer.from_pretrained(out)(texts)["input_ids"]
    assert ids == tokens.load("bert_enc").encode(texts)
    again = importing.read(out, blip_files.functions())
    assert all(np.array_equal(again.query[p], x) for p, x in params.items())
    processor = json.loads((out / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 24, "width": 24}


def test_salesforce_files_hold_more_and_all_of_it_is_named(params, tmp_path):
    tensors = blip_files.state(blip_files.shared())
    more = {
        "itm_head.weight": torch.zeros(2, 64), "visual_encoder_m.norm.weight": torch.zeros(64),
        "text_proj_m.bias": torch.zeros(16), "text_decoder.bert.x": torch.zeros(1),
        "image_queue": torch.zeros(16, 8), "queue_ptr": torch.zeros(1, dtype=torch.int64),
        "ptr_queue": torch.zeros(1, dtype=torch.int64), "idx_queue": torch.zeros(1, 8),
    }  # fmt: skip
    torch.save({"model": tensors | more}, tmp_path / "model_base.pth")
    source = sources.open_source(tmp_path / "model_base.pth")
    layout, _ = identify.find(source, "blip")
    assert layout.name == "salesforce" and identify.sole_model([source]) == "blip"
    assert all(tables.ignored_reason(layout.ignored, name) for name in (*more, "temp"))
    weights = importing.read(tmp_path / "model_base.pth", blip_files.functions())
    for path, value in params.items():
        np.testing.assert_array_equal(value, weights.query[path])


def test_positions_of_another_size_of_image(stage_one):
    functions = blip_files.functions(image=56)
    query = importing.read(stage_one, functions).query
    want = blip_files.state(blip_files.shared())["visual_encoder.pos_embed"]
    grid = want[:, 1:].reshape(1, 3, 3, 64).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (7, 7), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, 49, 64)
    want = torch.cat([want[:, :1], grid], 1).numpy()
    np.testing.assert_allclose(query["visual/position"], want, atol=1e-6)
    rows = np.random.default_rng(0).normal(size=(1, 577, 8)).astype(np.float32)
    small = torch.from_numpy(rows[:, 1:]).reshape(1, 24, 24, 8).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(small, (14, 14), mode="bicubic")
    small = small.permute(0, 2, 3, 1).reshape(196, 8).numpy()
    np.testing.assert_allclose(pos_embed.interpolated(rows, 14)[0, 1:], small, atol=1e-5)
    tensor = Tensor((1, 11, 8), "float32", lambda: None)
    with pytest.raises(UserError, match=r"a.pt has 11 positions, which are not a square of patc"):
        pos_embed.fitted(tensor, 50, "a.pt")


def test_verify_compares_layer_by_layer(folder, params, tmp_path, capsys):
    write(tmp_path / "best.pt", params, "spn")
    assert convert_weights.main(["verify", str(tmp_path / "best.pt")]) == 0
    assert "text/block 1" in capsys.readouterr().out
    assert convert_weights.main(["verify", str(folder), "--limit", "1e-12"]) == 2
    said = capsys.readouterr()
    assert "is over the limit of 1e-12" in said.err
    assert float(said.out.split()[-1]) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("text_proj.bias"), r"1 missing: text_proj.bias \[16\]"),
        (
            lambda t: t.update({"text_encoder.pooler.dense.bias": torch.zeros(64)}),
            r"1 not part of the model: text_encoder.pooler.dense.bias \[64\]",
        ),
        (
            lambda t: t.update({"text_proj.weight": t["text_proj.weight"].T.contiguous()}),
            r"text_proj.weight is \[64, 16\], the model has \[16, 64\] \(transposed\?\)",
        ),
        (
            lambda t: t.update({"visual_encoder.pos_embed": torch.zeros(1, 12, 64)}),
            r"12 positions, which are not a square of patches and a class token",
        ),
        (
            lambda t: t.update(
                {"text_encoder.embeddings.word_embeddings.weight": torch.zeros(30522, 64)}
            ),
            r"30522 tokens, not the 30524 of BLIP",
        ),
    ],
)
def test_wrong_files_are_named(change, message, tmp_path):
    tensors = blip_files.state(blip_files.shared())
    change(tensors)
    torch.save({"BLIP_Retrieval": tensors}, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=message):
        importing.read(tmp_path / "wrong.pt", blip_files.functions())


def test_a_width_that_salesforce_cannot_have(tmp_path):
    tensors = {"visual_encoder.patch_embed.proj.weight": (96, 3, 8, 8)}
    held = {name: Tensor(shape, "float32", lambda: None) for name, shape in tensors.items()}
    held["visual_encoder.pos_embed"] = Tensor((1, 10, 96), "float32", lambda: None)
    with pytest.raises(UserError, match=r"a.pt has a width of 96, no multiple of 64"):
        blip_rules.size_of(held, "", "a.pt")
    with pytest.raises(UserError, match=r"patch_embed.proj.weight, which tells its size, is missi"):
        blip_rules.size_of({}, "", "a.pt")
    functions = blip_files.functions("vit-24-8-w32-l1-h2_med-w32-l1-h2_d16")
    params = {p: np.zeros(x.shape, np.float32) for p, x in functions.abstract.items()}
    with pytest.raises(UserError, match=r"something else .*the image side has 2 heads, not 32 / 6"):
        exporting.write(tmp_path / "a.pt", functions, params, params, layout="spn")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("", "model_type", "clip", r"model_type='clip' and architectures=.*is needed"),
        ("", "architectures", ["BlipModel"], r"architectures=\['BlipModel'\]; a BLIP for retrieva"),
        ("text_config", "hidden_act", "relu", r"text_config.hidden_act='relu' \(BLIP's is 'gelu'"),
        ("vision_config", "layer_norm_eps", 1e-3, r"layer_norm_eps=0.001 \(it is 1e-06 or 1e-05"),
        ("text_config", "vocab_size", 30522, r"30522 tokens, not the 30524 of BLIP"),
        (
            "vision_config",
            "image_size",
            "x",
            r"config.json (is refused by|has vision_config.image)",
        ),
    ],
)
def test_configs_of_another_model(part, key, value, message, folder, tmp_path):
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config[part] if part else config)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        importing.read(tmp_path, blip_files.functions())


def test_epsilon_of_published_configs_is_read(tmp_path):
    blip_files.torch_blip(epsilon=1e-5).save_pretrained(tmp_path)
    found = identify.find(sources.open_source(tmp_path), "blip")[1]
    assert found.config["tower"] == blip_files.TOWER
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"has the names of transformers' BLIP but no config.json"):
        identify.find(sources.open_source(tmp_path), "blip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "a\nb\n", r"vocab.txt is not BLIP's tokenizer: its words are not bert-base"),
        ("tokenizer.json", "{}", r"tokenizer.json is not BLIP's tokenizer: it cannot be read"),
        ("preprocessor_config.json", '{"image_mean": [0.5, 0.5, 0.5]}', r"has an image mean of"),
        ("preprocessor_config.json", '{"do_rescale": false}', r"has do_rescale=False: other pixe"),
    ],
)
def test_files_beside_the_weights_are_checked(name, content, message, folder, tmp_path):
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        importing.read(tmp_path, blip_files.functions())


def test_a_folder_with_other_weights_is_not_mixed(params, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds pytorch_model.bin of another export"):
        write(tmp_path, params, "huggingface")


def described():
    """Tensor name -> shape of the published stage one, written from its description."""
    width, inner, found = 768, 3072, {}

    def add(name, *shape):
        found[f"{name}.weight"] = shape
        found[f"{name}.bias"] = shape[:1]

    found["visual_encoder.cls_token"] = (1, 1, width)
    found["visual_encoder.pos_embed"] = (1, 577, width)
    add("visual_encoder.patch_embed.proj", width, 3, 16, 16)
    for i in range(12):
        block, layer = f"visual_encoder.blocks.{i}", f"text_encoder.encoder.layer.{i}"
        add(f"{block}.attn.qkv", 3 * width, width)
        add(f"{block}.attn.proj", width, width)
        add(f"{block}.mlp.fc1", inner, width)
        add(f"{block}.mlp.fc2", width, inner)
        for side in ("attention", "crossattention"):
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                add(f"{layer}.{side}.{part}", width, width)
            add(f"{layer}.{side}.output.LayerNorm", width)
        add(f"{layer}.intermediate.dense", inner, width)
        add(f"{layer}.output.dense", width, inner)
        for norm in (f"{block}.norm1", f"{block}.norm2", f"{layer}.output.LayerNorm"):
            add(norm, width)
    for norm in ("visual_encoder.norm", "text_encoder.embeddings.LayerNorm"):
        add(norm, width)
    found["text_encoder.embeddings.word_embeddings.weight"] = (30524, width)
    found["text_encoder.embeddings.position_embeddings.weight"] = (512, width)
    add("vision_proj", 256, width)
    add("text_proj", 256, width)
    return found


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.name != "huggingface"])
def test_every_tensor_of_the_published_model_has_its_place(layout):
    prefix = "blip." if layout.name == "spn" else ""
    group = {"blip4cir": "BLIP_Retrieval", "spn": "state_dict", "salesforce": "model"}[layout.name]
    need = {prefix + name: shape for name, shape in described().items()}
    held = {name: Tensor(shape, "float32", lambda: None) for name, shape in need.items()}
    held |= {f"{prefix}temp": Tensor((), "float32", lambda: None)}
    # With the temperature that the published class counts.
    assert sum(math.prod(tensor.shape) for tensor in held.values()) == 223_742_721
    source = sources.Source(None, "torch", {group: held})
    chosen, found = identify.find(source, "blip")
    assert chosen is layout and found.config == {"tower": "blip-base", "context": 0}
    functions = blip_files.functions("blip-base", context=0)
    table = tables.expand(layout.rules(functions.config), functions.abstract)
    assert tables.shapes(table, functions.abstract) == need
    tables.check(table, functions.abstract, held, layout.ignored, "it")


def test_every_tensor_of_transformers_has_its_place():
    with torch.device("meta"):
        theirs = blip_files.torch_blip_of_base()
    need = {n: tuple(x.shape) for n, x in theirs.state_dict().items() if "itm_head" not in n}
    functions = blip_files.functions("blip-base", context=0)
    table = tables.expand(blip_rules.huggingface(), functions.abstract)
    assert tables.shapes(table, functions.abstract) == need


def test_the_model_of_pretrained_weights_is_of_their_size(stage_one):
    """BLIP starts at 224 pixels: a tower of that size by itself, of 384 if one asks for it."""
    found = identify.find(sources.open_source(stage_one), "blip")[1]
    assert found.fits("tower", blip_files.TOWER.replace("vit-24", "vit-56"))
    assert not found.fits("tower", blip_files.TOWER.replace("l2", "l3"))
    assert found.fits("context", 12) and not found.fits("context", 0)
    query = jax.eval_shape(lambda: blip_files.functions("blip-base-224", context=0).init(0))
    assert query["visual/position"].shape == (1, 197, 768)
