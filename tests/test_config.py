# SPDX-License-Identifier: Apache-2.0
"""Configs: every one builds, keys are locked, and mistakes name what exists."""

import importlib
import json

import pytest

from cir_jax import config, contract, keys, plugins
from cir_jax.errors import UserError
from cir_jax.main import main
from tests import runs

WITHOUT_STAGE_ZERO = ("blip", "sprc", "gemma_embedding")
ARGUMENTS = ("fashioniq", "cirr", "emoji", "quicktest")
# "served" asks an embedder for its width; it is built in tests/embedders.
TRAINED = [name for name in config.available() if name not in ("positives", "served")]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("name", TRAINED)
def test_every_config_builds(name, argument, stage):
    if stage == 0 and name in WITHOUT_STAGE_ZERO:
        with pytest.raises(UserError, match=f"{name} has no stage 0"):
            config.load(f"{name}:{argument},stage=0")
        return
    loaded = config.load(f"{name}:{argument},stage={stage}")
    assert loaded.is_locked and loaded.workdir.startswith("runs/")
    assert contract.build(loaded.model).abstract
    base = config.load("base")
    assert keys.flat(loaded).keys() == keys.flat(base).keys()


def test_recipes_of_the_paper():
    c = config.load("clip_sum:cirr,stage=2")
    assert (c.epochs, c.batch, c.optim.learning_rate, c.loss.temperature) == (3, 256, 2e-5, 0.02)
    assert (c.model.tower, c.data.pad, c.data.target_ratio) == ("RN50x4", "target", 1.25)
    assert (c.optim.epsilon, c.optim.weight_decay, c.optim.schedule) == (1e-7, 0.01, "constant")


# The settings that the released code was run with, row by row: only references of annotated
# triplets (refer), window of ranks, numbers of the templates, words of a caption, and K.
TABLE = """
tgcir fashioniq | yes | 10000-20000 | 2   | 10 | all
tgcir cirr      | no  | 10000-15000 | 0,1 | 10 | all
clip fashioniq  | yes | 10000-20000 | 2   | 4  | all
clip cirr       | no  | 10000-15000 | 0,1 | 8  | all
blip fashioniq  | yes | random      | 2   | 10 | 3000
blip cirr       | no  | random      | 0,1 | 10 | all
blip2 fashioniq | yes | random      | 2   | 10 | 6000
blip2 cirr      | yes | random      | 0,1 | 10 | all
zs fashioniq    | no  | random      | 2   | 5  | all
zs cirr         | no  | random      | 0,1 | 10 | all
cc fashioniq    | no  | random      | 2   | 10 | all
cc cirr         | no  | random      | 0,1 | 10 | all
"""
ROWS = [[cell.strip() for cell in row.split("|")] for row in TABLE.strip().split("\n")]
TEMPLATES = ("{target} instead of {reference}", "Unlike {reference}, I want {target}", "{target}")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_recipes_of_generated_triplets(row):
    name, refer, window, templates, words, keep = row
    method, dataset = name.split()
    c = config.load(f"positives:{method}-{dataset}")
    assert c.is_locked and c.workdir == f"runs/positives-{method}-{dataset}"
    assert c.pair.references_only == (refer == "yes")
    if window == "random":
        assert c.pair.method == "random"
    else:
        low, high = map(int, window.split("-"))
        assert (c.pair.method, tuple(c.pair.window)) == ("window", (low, high))
    assert tuple(c.modify.templates) == tuple(TEMPLATES[int(n)] for n in templates.split(","))
    assert c.caption.words == int(words)
    assert c.pair.keep == (0 if keep == "all" else int(keep))
    # In all rows: one pair per image, seed 42, no rewriting, known pairs not left out.
    assert (c.pair.per_image, c.seed, c.rewrite.captioner) == (1, 42, "")
    assert not c.pair.exclude_known and c.dedupe.exact and c.dedupe.near == -1
    out_of_domain = method == "cc"
    assert (c.data.name, c.data.images) == (
        ("list", "all") if out_of_domain else (dataset, "triplets")
    )
    asked = c.caption.prompt.format(words=words, category="dress")
    what = "dress" if dataset == "fashioniq" and not out_of_domain else "image"
    assert asked == f"please briefly describe the {what} in {words} words"
    assert (c.output.layout, c.output.tag) == (
        ("cc", dataset) if out_of_domain else (dataset, method)
    )


def test_every_recipe_has_the_same_keys():
    recipes = importlib.import_module("cir_jax.configs.positives").RECIPES
    assert {f"{m}-{d}" for m, d in (row[0].split() for row in ROWS)} < set(recipes)
    known = keys.flat(config.load("positives")).keys()
    for name in recipes:
        changed = config.load(f"positives:{name}", ["pair.per_image=2", "rewrite.texts=3"])
        assert keys.flat(changed).keys() == known
        assert (changed.pair.per_image, changed.rewrite.texts) == (2, 3)


def test_zero_shot_recipes():
    """Generated triplets alone; ViT-L/14; stage one, then two, with the published settings."""
    files = {
        "fashioniq": "captions/cap.extend_zs.train.json",
        "cirr": "cirr/captions/cap.rc2.train.extend_zs.json",
        "fashioniq-cc": "captions/cap.cc.train.json",
        "cirr-cc": "cirr/captions/cap.rc2.train.cc.json",
    }
    for name, file in files.items():
        for stage, settings in ((1, (10, 48, 2e-6, 0.01)), (2, (5, 128, 2e-6, 0.02))):
            c = config.load(f"zero_shot:{name},stage={stage}")
            assert (c.epochs, c.batch, c.optim.learning_rate, c.loss.temperature) == settings
            assert (c.model.name, c.model.tower) == ("clip_sum", "ViT-L/14")
            assert (c.data.annotated, tuple(c.data.generated)) == (0, (file,))
            assert c.data.name == c.eval.benchmark == name.removesuffix("-cc")
            assert (c.optim.epsilon, c.optim.weight_decay) == (1e-7, 0.01)
            assert c.stage == {1: "one_in_batch", 2: "two_bank"}[stage]
    with_positives = config.load("clip_sum:cirr,stage=2,positives")
    assert tuple(with_positives.data.generated) == ("cirr/captions/cap.rc2.train.extend_clip.json",)
    assert with_positives.data.annotated == -1


def test_overrides_keep_types():
    c = config.load(
        "clip_sum:emoji",
        ["batch=64", "optim.learning_rate=1", "data.categories=people,hands", "model.remat=true"],
    )
    assert (c.batch, c.optim.learning_rate, c.model.remat) == (64, 1.0, "layers")
    assert c.data.categories == ("people", "hands")


@pytest.mark.parametrize(
    "spec, overrides, message",
    [
        (
            "clip_sum",
            ["optim.learing_rate=1"],
            "unknown config key .* Did you mean 'optim.learning_",
        ),
        ("clip_sum", ["batch=many"], "batch=many is not of type int; its value now is 128"),
        ("clip_sum", ["batch"], "override 'batch' has no value; write key=value"),
        (
            "clip_sun",
            [],
            "no config 'clip_sun'; there are: .*clip_combiner, .* Did you mean 'clip_sum'",
        ),
        ("clip_sum:fashion", [], "argument 'fashion' is unknown; there are: fashioniq, cirr"),
        ("positives:clip-fashion", [], "no recipe 'clip-fashion'; .* Did you mean 'clip-fashioniq"),
        (
            "positives",
            ["pair.windo=1"],
            "key 'pair.windo'. Did you .* All: configs/positives.py, and",
        ),
        ("zero_shot:ciir", [], "'ciir' is unknown; there are: fashioniq, .* Did you mean 'cirr'"),
        ("clip_sum:stage=3", [], "config argument 'stage=3' is unknown"),
        ("nowhere.py", [], "no config file nowhere.py; by name there are: .*clip_combiner, "),
    ],
)
def test_errors(spec, overrides, message):
    with pytest.raises(UserError, match=message):
        config.load(spec, overrides)


def test_names_that_do_not_exist_list_what_does(tmp_path):
    root = runs.write_fashioniq(tmp_path)
    for change, message in (
        ("model.name=clip_some", r"no 'clip_some' in models; there are: .*Did you mean 'clip_sum'"),
        (
            "data.name=fashion",
            r"no 'fashion' in readers; there are: .*cirr, emoji, fashioniq, fold",
        ),
        (
            "eval.benchmark=cir",
            r"no 'cir' in benchmarks; there are: .*cirr, emoji, fashioniq, folder",
        ),
        ("stage=three", r"no 'three' in stages; there are: one_in_batch, two_bank, zero_image"),
        ("model.tower=ViT", r"no tower 'ViT'; there are: RN50"),
        ("model.dtype=float16", r"model.dtype='float16' is unknown; use auto, float32 or bfloat16"),
        ("batch=12", r"batch 12 does not divide over 8 devices of axis 'data'; use 8 or 16"),
        ("batch=64", r"batch 64 is larger than the 32 triplets"),
        ("model.image_size=32", r"model.image_size=32, but tower 'tiny-vit' takes 64"),
    ):
        model = "clip_sum" if change.startswith("model.") else "cross_attention"
        with pytest.raises(UserError, match=message):
            runs.set_up(runs.tiny(tmp_path / "run", root, change, model=model))


def test_a_plugin_file_without_the_contract(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("class Model: pass\n")
    with pytest.raises(
        UserError, match=r"model '.*mine.py' .* lacks TOKENIZER, CUT_PADDING, REFER"
    ):
        contract.build(config.load("clip_sum", [f"model.name={file}"]).model)
    file = tmp_path / "other.py"
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match=r"other.py is no plug-in of models: it defines no 'Model'"):
        plugins.load("cir_jax.models", str(file), "Model")
    with pytest.raises(UserError, match=r"no file nothing.py for models"):
        plugins.load("cir_jax.models", "nothing.py", "Model")


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cir_jax.commands.doctor.run", interrupted)
    assert main(["doctor", "folder", "nowhere"]) == 130
    assert capsys.readouterr().err == "cir-jax doctor: stopped; what is written is kept\n"


def test_command_line(capsys):
    assert main(["train", "--config", "clip_sum", "--config.batc=3"]) == 2
    assert "unknown config key 'batc'. Did you mean 'batch'?" in capsys.readouterr().err
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("demo", "doctor", "evaluate", "submit", "train"))
    assert main([]) == 2 and main(["--version"]) == 0


def test_a_run_of_an_earlier_version_gets_the_defaults_of_keys_it_does_not_know():
    now = config.load("clip_sum:cirr", ["batch=24"])
    content = json.loads(config.to_json(now))
    del content["loss"]["auxiliary"], content["max_seconds"]
    assert config.from_json(json.dumps(content)) == now


@pytest.mark.parametrize("then, now", [(True, "memory"), (False, "decode")])
def test_a_key_of_before_is_taken_for_the_one_of_now(tmp_path, then, now):
    assert config.load("clip_sum", [f"data.cache_pixels={then}"]).data.pixels == now
    assert config.given(config.load("clip_sum", [f"data.cache_pixels={then}"])) == {"data.pixels"}
    content = json.loads(config.to_json(config.load("clip_sum")))
    del content["data"]["pixels"]
    content["data"]["cache_pixels"] = then
    assert config.from_json(json.dumps(content)) == config.load("clip_sum", [f"data.pixels={now}"])
    (tmp_path / "mine.py").write_text(
        "from cir_jax.config import sibling\n"
        "def get_config(arg=''):\n"
        "    config = sibling(__file__, 'clip_sum').get_config()\n"
        f"    config.data.cache_pixels = {then}\n"
        "    return config\n"
    )
    found = config.load(str(tmp_path / "mine.py"))
    assert found.data.pixels == now and "cache_pixels" not in found.data
    with pytest.raises(UserError, match=r"cache_pixels=2 is unknown, .* data.pixels=memory for tr"):
        config.load("clip_sum", ["data.cache_pixels=2"])


# What trains on your own triplets, by name: no data set of others is in it.
OWN = [
    (model, argument, stage)
    for model in TRAINED
    for argument in ("folder", "tiny", *(() if model in WITHOUT_STAGE_ZERO else ("vit-b32",)))
    for stage in (1, 2)
]


@pytest.mark.parametrize("model, argument, stage", OWN)
def test_configs_of_your_own_triplets(model, argument, stage):
    c = config.load(f"{model}:{argument},stage={stage},positives".removesuffix(
        ",positives" if model == "zero_shot" else ""))  # fmt: skip
    assert c.data.name == c.eval.benchmark == "folder" and not c.data.root
    assert tuple(c.data.generated) == ("positives/triplets.jsonl",)
    assert c.data.annotated == (0 if model == "zero_shot" else -1)
    assert c.loss.exclude_positives is (stage == 2)
    assert c.workdir == f"runs/{model}-{argument}-stage{stage}" + (
        "" if model == "zero_shot" else "-positives"
    )
    paper = config.load(f"{model}:fashioniq,stage={stage}")
    if argument == "tiny":
        assert c.model.tower == config.load(f"{model}:emoji,stage={stage}").model.tower
        assert contract.build(c.model).abstract
        return
    assert c.model.tower == {"folder": "auto", "vit-b32": "ViT-B/32"}[argument]
    for key in ("batch", "epochs", "optim", "data.pad", "data.text_lengths", "model.dropout"):
        assert keys.flat(c).get(key, c.get(key)) == keys.flat(paper).get(key, paper.get(key)), key


def test_own_triplets_of_models_without_a_small_clip():
    for model in WITHOUT_STAGE_ZERO:
        with pytest.raises(UserError, match=r"'vit-b32' is unknown; there are: .*, folder, tiny"):
            config.load(f"{model}:vit-b32")
    assert config.load("clip_sum:tiny,stage=0").stage == "zero_image_text"


def test_help_names_the_configs_of_your_own_triplets(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count('of your own triplets, "folder"') == 7
    assert 'of your own images, "folder"' in said
