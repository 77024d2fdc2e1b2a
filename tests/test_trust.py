# SPDX-License-Identifier: Apache-2.0
"""A stranger's run folder runs nothing, whatever it names; the user's own goes on as before."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

import cir_jax
from cir_jax import config as configs
from cir_jax import keys, main, trust, weights
from cir_jax.convert import native
from cir_jax.errors import UserError
from cir_jax.retrieval import load
from cir_jax.training import train
from tests import runs
from tests.convert import published

MARK = "CODE_HAS_RUN"
EVIL = f"""import os
os.environ["{MARK}"] = "yes"
KEYS = {{}}
from cir_jax.models.clip_sum import *
"""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine that knows no code of this user yet, on which no code has run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(MARK, raising=False)
    yield
    os.environ.pop(MARK, None)


def stranger(folder, **names):
    """A run folder whose record names files of Python, as an import makes one."""
    folder.mkdir(parents=True)
    evil = folder / "evil.py"
    evil.write_text(EVIL)
    named = {key.replace("__", "."): str(evil) for key in names}
    config = configs.load("base", ["model.tower=" + published.VIT, "eval.benchmark=none",
                                   "model.name=clip_sum", "model.dtype=float32"])  # fmt: skip
    functions = published.functions()
    params = functions.init(0)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(named)
    made = weights.Weights(params, params, {"layout": "none"})
    weights.save_run(folder, config, functions, made)
    return folder


WAYS = ["submit", "export", "import", "load", "pair.run"]
PLACES = ["model__name", "eval__benchmark", "data__name", "stage"]


@pytest.mark.parametrize(
    ("way", "key"),
    [*(("evaluate", key) for key in PLACES), *((way, PLACES[0]) for way in WAYS)],
)
def test_a_strangers_run_runs_nothing_and_says_what_to_do(way, key, tmp_path, capsys):
    run = stranger(tmp_path / "run", **{key: 1})
    out = str(tmp_path / "out.safetensors")
    ways = {
        "evaluate": ["evaluate", "--workdir", str(run)],
        "submit": ["submit", "--workdir", str(run), "--out", out],
        "export": ["export", str(run), out, "--format", "safetensors"],
        "import": ["import", str(run), out],
    }
    if way in ways:
        assert main.main(ways[way]) == 2
        said = capsys.readouterr().err
    else:
        with pytest.raises(UserError) as refused:
            cir_jax.load(run) if way == "load" else load.from_run(run)
        said = str(refused.value)
    name = key.replace("__", ".")
    assert f"{run} names code of its own, {name}='{run}/evil.py'" in said
    assert (
        f"--trust-code (in Python, trust_code=True), or name a file of yours, --set {name}" in said
    )
    assert MARK not in os.environ


def test_what_only_looks_runs_nothing_either(tmp_path, capsys):
    run = stranger(tmp_path / "run", model__name=1)
    assert main.main(["inspect", str(run)]) == 0
    assert f"model.name={run}/evil.py" in capsys.readouterr().out
    begun = runs.tiny(tmp_path / "own", tmp_path, f"init_from={run}", "model.tower=auto",
                      model="clip_sum")  # fmt: skip
    assert weights.resolve(begun).model.tower == published.VIT
    assert MARK not in os.environ


def test_a_user_may_say_that_a_folder_is_trusted_or_name_another_file(tmp_path):
    run = stranger(tmp_path / "run", model__name=1)
    mine = shutil.copy(run / "evil.py", tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text(EVIL.replace("yes", "mine"))
    load.from_run(run, overrides=[f"model.name={mine}"])
    assert os.environ.pop(MARK) == "mine"
    out = tmp_path / "a.safetensors"
    assert main.main(["export", str(run), str(out), "--format", "safetensors", "--trust-code"]) == 0
    assert os.environ.pop(MARK) == "yes"
    with pytest.raises(UserError, match="names code of its own"):  # said once, for one command
        load.from_run(run)
    assert cir_jax.load(run, trust_code=True).name == str(run / "evil.py")


def test_the_users_own_run_goes_on_by_the_same_command(tmp_path, monkeypatch, capsys):
    """The file that a command names is noted for this machine, and any change of it counts."""
    monkeypatch.chdir(tmp_path)
    runs.write_fashioniq(tmp_path / "data")
    Path("own.py").write_text(EVIL)
    config = runs.tiny("run", "data", "model.name=own.py", "steps=1", "eval.benchmark=none",
                       model="clip_sum")  # fmt: skip
    train.train(config)
    side = [Path("run", name) for name in ("checkpoints/evaluations.json", "examples.json")]
    for file in side:
        file.write_bytes(b"\xff damaged")
    Path("run/metrics.jsonl").write_bytes(b"5\n" + Path("run/metrics.jsonl").read_bytes())
    assert train.train(config)["finished"]  # which resumes, with what is left of the side files
    for file in (*side, Path("run/metrics.jsonl")):
        assert file.with_name(f"{file.name}.damaged").is_file()
    said = capsys.readouterr().out
    assert all(f"{name} is damaged (" in said for name in ("evaluations.json", "examples.json"))
    load.from_run("run")
    shutil.move("run", "moved")
    load.from_run("moved")
    Path("own.py").write_text(EVIL + "# something else\n")
    with pytest.raises(UserError, match=r"names code of its own, model.name='own.py'"):
        load.from_run("moved")
    Path("own.py").write_text(EVIL)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="nothing notes that you have trained with it"):
        load.from_run("moved")


def test_where_nothing_can_be_noted_training_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "state").write_text("a file")
    (tmp_path / "own.py").write_text("")
    config = configs.load("base").copy_and_resolve_references()
    with config.unlocked():
        config.model.name = str(tmp_path / "own.py")
    trust.remember(config)
    assert "will ask for --trust-code" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["size of payload", "plug-in payload.deep", "size of cir_jax.x;y"])
def test_what_a_key_may_be_imports_nothing_but_ours(rule, tmp_path, monkeypatch):
    (tmp_path / "payload").mkdir()
    (tmp_path / "payload" / "__init__.py").write_text(EVIL)
    (tmp_path / "own.py").write_text(f'KEYS = {{"extra": ("x", "about", {rule!r})}}\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="is no module of cir_jax"):
        configs.load("base", [f"model.name={tmp_path}/own.py"])
    assert MARK not in os.environ


@pytest.mark.parametrize("text", ["KEYS = {" + "(" * 300 + ")" * 300 + ": 1}", "KEYS = {[]: 1}",
                                  "KEYS = {'a': open('x')}", "\0", "KEYS = {'a': 1", "KEYS = -" * 9,
                                  "x" + "[0]" * 20_000, "KEYS = {**{}}", "KEYS = 1"])  # fmt: skip
def test_keys_that_are_none_are_a_sentence(text, tmp_path):
    (tmp_path / "own.py").write_text(text)
    kind = keys.KINDS[0]
    with pytest.raises(UserError):
        if keys.declared(kind, str(tmp_path / "own.py")) == {}:
            raise UserError("no KEYS at all, which is right")


class _Runs:
    def __reduce__(self):
        return os.putenv, (MARK, "yes")


def test_pickles_and_links_in_a_run_folder_run_nothing(tmp_path):
    """Whatever name they have there, a pickle is not opened, and a link leads to no code."""
    run = stranger(tmp_path / "run")
    step = run / "checkpoints/best/0"
    bad = pickle.dumps(_Runs())
    for name in ("aggregate", "checkpoint", "checkpoint.pkl", "treedef.pkl", "sitecustomize.py"):
        for folder in (run, step, step / "state"):
            (folder / name).write_bytes(bad)
    (run / "cir_jax").symlink_to(tmp_path)
    (run / weights.TOKENIZER).mkdir()
    (run / weights.TOKENIZER / "tokenizer.pkl").symlink_to(run / "checkpoint.pkl")
    (run / "record.json").symlink_to("/dev/zero")
    with contextlib.suppress(UserError):  # Orbax takes one of them for a checkpoint of its own
        load.from_run(run)
    assert MARK not in os.environ


def test_a_file_of_ours_that_names_code_runs_nothing(tmp_path):
    from cir_jax.convert.containers import safe_tensors
    from cir_jax.convert.containers.tensors import of

    (tmp_path / "evil.py").write_text(EVIL)
    model = {"name": str(tmp_path / "evil.py"), "tower": published.VIT, "context": 0,
             "image_size": 0}  # fmt: skip
    content = json.dumps({"version": native.VERSION, "model": model})
    params = published.functions().init(0)
    with open(tmp_path / "a.safetensors", "wb") as file:
        safe_tensors.write(file, {k: of(v.__array__()) for k, v in params.items()},
                           {native.KEY: content})  # fmt: skip
    with pytest.raises(UserError, match="whose code would be run"):
        cir_jax.load(tmp_path / "a.safetensors")
    assert MARK not in os.environ
