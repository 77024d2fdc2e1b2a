# SPDX-License-Identifier: Apache-2.0
"""Values are checked when a config is loaded; keys of plug-ins are read without running them."""

import subprocess
import sys

import pytest

from cir_jax import config, keys, plugins
from cir_jax.errors import UserError

WRONG = [
    ("clip_sum", "optim.schedule=cosin", r"schedule='cosin' is unknown; use constant, cosine or l"),
    ("clip_sum", "optim.schedule=cosin", r"Did you mean 'cosine'\?"),
    ("clip_sum", "batch=0", r"batch=0 is out of range; it must be at least 1"),
    ("clip_sum", "loss.temperature=0", r"temperature=0.0 is out of range; it must be above 0"),
    ("clip_sum", "loss.temperature=1e999", r"temperature=inf is out of range; .* above 0"),
    ("clip_sum", "optim.learning_rate=nan", r"rate=nan is out of range; .* at least 0 and at most"),
    ("clip_sum", "optim.beta1=1", r"optim.beta1=1.0 is out of range; .* at least 0 and below 1"),
    ("clip_sum", "optim.drops=0.5,1.5", r"drops=\(0.5, 1.5\) is out of range; each number must be"),
    ("clip_sum", "optim.drops=half", r"optim.drops=\('half',\) is out of range; each number must"),
    ("clip_sum", "data.weights=1,0", r"data.weights=\(1, 0\) is out of range; each number must be"),
    ("clip_sum", "optim.no_decay=(", r"optim.no_decay: '\(' is no regular expression \(missing \)"),
    ("clip_sum", "optim.multipliers=(('a',-1),)", r"\('a', -1\) is no pair of a regular expressi"),
    ("clip_sum", "optim.multipliers=(('(',1),)", r"optim.multipliers: '\(' is no regular express"),
    ("clip_sum", "model.name=clip_some", r"no 'clip_some' in models; .*Did you mean 'clip_sum'\?"),
    ("clip_sum", "model.name=mine.py", r"no file mine.py for models; give the path of an existin"),
    ("clip_sum", "model.tower=ViT", r"no tower 'ViT'; there are: RN50"),
    ("sprc", "model.tower=ViT-B/32", r"no BLIP-2 tower 'ViT-B/32'|no tower 'ViT-B/32'"),
    (
        "clip_sum",
        "stage=three",
        r"no 'three' in stages; there are: one_in_batch, two_bank, z",
    ),
    ("clip_sum", "stage=", r"no '' in stages"),
    ("clip_sum", "data.name=fashion", r"no 'fashion' in readers; .*Did you mean 'fashioniq'\?"),
    ("clip_sum", "eval.benchmark=cir", r"no 'cir' in benchmarks; .*Did you mean 'cirr'\?"),
    ("clip_sum", "loss.negative_types=target,texts", r"unknown; use target, query, text or refere"),
    (
        "clip_sum",
        "loss.bank_negatives=5",
        r"bank_negatives is read by stage=two_bank, but thi",
    ),
    ("clip_sum", "eval.tasks=a", r"read by eval.benchmark=genecis, but this config has eval.bench"),
    (
        "clip_sum",
        "model.dropout=0.1",
        r"dropout is read by model.name=blip, but .*=clip_sum",
    ),
    ("blip", "model.dropout=1", r"model.dropout=1.0 is out of range; it must be at least 0 and b"),
    ("clip_sum", "optim.lr=1", r"unknown config key 'optim.lr'. Did you mean 'optim.learning_rate"),
    ("clip_sum", "lr=1", r"unknown config key 'lr'. Did you mean 'optim.learning_rate'\?"),
    ("positives", "caption.captioner=serve", r"no 'serve' in captioners; .*Did you mean 'server'"),
    ("positives", "pair.method=windows", r"unknown; use random, window, mined or file. Did you me"),
    (
        "positives",
        "rewrite.top_p=0",
        r"rewrite.top_p=0.0 is out of range; it must be above",
    ),
    ("clip_sum", "seed=4294967296", r"seed=4294967296 .* at least 0 and at most 4,294,967,295"),
    ("clip_sum", "optim.epsilon=0", r"epsilon=0.0 is out of range; it must be above 0 and at most"),
    ("clip_sum", "optim.learning_rate=20", r"learning_rate=20.0 .* at least 0 and at most 10"),
    ("clip_sum", "data.threads=100000", r"threads=100000 .* at least 1 and at most 1,024"),
    ("clip_sum", "checkpoint.keep=0", r"keep=0 is out of range; it must be at least 1 and at most"),
    ("clip_sum", "data.generated=-1", r"data.generated=.-1,.: -1 is no path; .* name is ./-1"),
    ("clip_sum", "data.generated=[1,2]", r"data.generated=.1, 2.: 1 is no path"),
    ("clip_sum", "data.unlabelled=None", r"data.unlabelled=.*None.*: None is no path"),
    ("positives", "caption.url=x", r"url is read by caption.captioner=server, but this config has"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_a_wrong_value_names_key_value_and_limit(name, change, message):
    with pytest.raises(UserError, match=message):
        config.load(name, [change])


def test_defaults_and_recipes_are_allowed():
    """Every value that a config comes with passes its own table."""
    for name in config.available():
        loaded = config.load(name)
        tables = config.module(config._base(loaded)).ALLOWED
        assert set(tables) <= keys.flat(loaded).keys()


def test_names_of_plug_ins_may_come_last():
    changes = ["model.dropout=0.1", "loss.bank_negatives=4", "stage=two_bank", "model.name=blip"]
    loaded = config.load("clip_sum", [*changes, "model.tower=tiny-blip"])
    assert (loaded.model.dropout, loaded.loss.bank_negatives) == (0.1, 4)


def test_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    changes = ["data.root=~/fiq", "init_from=$DATA/a.pt,~/b.pt", "data.generated=$DATA/x,~/y"]
    loaded = config.load("clip_sum", [*changes, "workdir=$HOME/runs", "eval.root=~"])
    assert (loaded.data.root, loaded.workdir) == ("/home/me/fiq", "/home/me/runs")
    assert loaded.init_from == "/data/a.pt,/home/me/b.pt" and loaded.eval.root == "/home/me"
    assert loaded.data.generated == ("/data/x", "/home/me/y")


MODEL = '''
"""A model of mine."""
raise SystemExit("it was run")
KEYS = {"heads": (4, "heads of the fusion", "[1, 16]"), "loss.mine": (0.5, "a weight", None)}
'''


def test_keys_of_a_file_are_read_without_running_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MODEL)
    loaded = config.load("clip_sum", ["model.heads=8", "loss.mine=1", f"model.name={file}"])
    assert (loaded.model.heads, loaded.loss.mine) == (8, 1.0)
    with pytest.raises(UserError, match=r"model.heads=17 is out of range; it must be at least 1 a"):
        config.load("clip_sum", [f"model.name={file}", "model.heads=17"])
    file.write_text("KEYS = {'heads': make()}\n")
    with pytest.raises(UserError, match=r"mine.py line 1: KEYS is read without running the file"):
        config.load("clip_sum", [f"model.name={file}"])
    file.write_text("KEYS = {'heads': 4}\n")
    with pytest.raises(UserError, match=r"so it must be a literal of the form"):
        config.load("clip_sum", [f"model.name={file}"])
    file.write_text("def (\n")
    with pytest.raises(UserError, match=r"mine.py is no Python file that can be read"):
        config.load("clip_sum", [f"model.name={file}"])


def test_plug_ins_agree_on_the_keys_that_they_share():
    """A key has one default and one meaning for whoever reads it; sizes of encoders differ."""
    found = {}
    for kind in keys.KINDS:
        for name in plugins.available(kind.package):
            for key, about in keys.declared(kind, name).items():
                if key != "model.tower":
                    assert found.setdefault(key, about).default == about.default, (key, name)
    assert {"loss.temperature", "model.dropout", "eval.gallery", "caption.url"} < found.keys()


def test_a_config_is_checked_before_jax_is_imported():
    code = (
        "import sys\nfrom cir_jax import main\n"
        "assert main.main(['train', '--config', 'clip_sum', '--set', 'optim.schedule=x']) == 2\n"
        "assert main.main(['train', '--config', 'clip_sum', '--set', 'model.tower=x']) == 2\n"
        "assert main.main(['train', '--config', 'clip_sum', '--set', 'data.name=x']) == 2\n"
        "heavy = {'jax', 'flax', 'torch', 'transformers', 'tensorflow_datasets', 'grain'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optim.schedule='x' is unknown" in done.stderr


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--epochs", "--set epochs=VALUE"),
        ("--lr=3", "--set optim.learning_rate=VALUE"),
        ("--batch-size", "--set batch=VALUE"),
        ("--bank-block", "--set loss.bank_block=VALUE"),
        ("--frobnicate", ""),
    ],
)
def test_flags_that_are_keys_get_a_hint(flag, hint, capsys):
    from cir_jax import main

    assert main.main(["train", "--config", "clip_sum", flag]) == 2
    said = capsys.readouterr().err
    assert f"unknown argument {flag}" in said and "--help` lists the flags" in said
    assert hint in said and ("--set" in said) == bool(hint)


def _numeric(value):
    elements = value if isinstance(value, tuple) else (value,)
    return bool(elements) and all(type(x) in (int, float) for x in elements)


def _rules():
    """(key, default, what it may be) of every key of a run, of positives and of every plug-in."""
    for base in ("base", "positives"):
        table = config.module(base).ALLOWED
        for key, value in keys.flat(config.module(base).get_config()).items():
            yield key, value, table.get(key)
    for kind in keys.KINDS:
        for name in plugins.available(kind.package):
            for key, about in keys.declared(kind, name).items():
                yield key, about.default, about.allowed


def test_every_number_has_an_interval_that_ends():
    """A value far outside what can be meant is refused, not tried out for an hour."""
    found = {}
    for key, value, rule in _rules():
        if _numeric(value):
            found.setdefault(key, []).append((value, rule))
    lacking = []
    for key, rows in found.items():
        # A key of plug-ins is in the flat config too, without a rule there.
        rules = [rule for _, rule in rows if rule is not None]
        lacking += [key] * (not rules or not all("inf" not in r and r[0] in "[(" for r in rules))
    assert not lacking
    assert {"optim.epsilon", "loss.temperature", "caption.wait", "model.dropout"} < found.keys()
    for key, rows in found.items():
        for value, rule in rows:
            for wrong in (float("inf"), float("nan"), -float("inf")) if rule else ():
                with pytest.raises(UserError, match=f"{key}=.* out of range"):
                    keys._check(key, wrong, rule)
            if rule:
                keys._check(key, value, rule)


def test_a_number_without_an_interval_is_finite_all_the_same(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MODEL)
    for text in ("1e999", "-1e999"):
        with pytest.raises(UserError, match=r"loss.mine=-?inf is no number to compute with; give"):
            config.load("clip_sum", [f"model.name={file}", f"loss.mine={text}"])
