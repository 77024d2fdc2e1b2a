# SPDX-License-Identifier: Apache-2.0
"""What a run says before and after its first steps, and runs that cannot teach anything."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from cir_jax import config as configs
from cir_jax import main
from cir_jax.errors import UserError
from cir_jax.evals import benchmark
from cir_jax.retrieval import load
from cir_jax.runtime import memory, metrics
from cir_jax.training import degenerate, notices, train
from cir_jax.training import memory as memories
from cir_jax.training import step as steps
from tests import runs

REFUSED_TARGET = r"all 8 triplets have one and the same image, '1.png'.* batch has no negative"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashioniq")
    runs.write_captions(folder)
    return runs.write_fashioniq(folder)


def folder(root, targets, texts):
    """A data set of 8 triplets of these targets and texts."""
    lines = []
    for i, (target, text) in enumerate(zip(targets, texts, strict=True)):
        record = {"reference": f"{'023'[i % 3]}.png", "target": target, "text": text}
        lines.append(json.dumps(record))
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(4):
        runs.write_image(root / "images" / f"{i}.png", list(runs.COLORS.values())[i], i)
    (root / "train.jsonl").write_text("\n".join(lines))
    return root


def said(capsys):
    return capsys.readouterr().out


def small(tmp_path, root, *changes, stage=1):
    """A tiny config of a folder, one that every batch fits."""
    return runs.tiny(
        *(tmp_path / "run", root, "eval.benchmark=none", "steps=3", *changes),
        stage=stage, data="folder",
    )  # fmt: skip


def test_memory_and_pace_are_said_and_logged(tmp_path, root, capsys):
    config = runs.tiny(
        *(tmp_path, root, "steps=12", "eval.benchmark=none", "optim.warmup_steps=4"),
        *("optim.learning_rate=1e-3", "optim.schedule=linear", "log_every=2"),
    )
    train.train(config)
    text = said(capsys)
    first = next(line for line in text.splitlines() if "parameters," in line)
    total = first.split()[0]
    assert f"{total} parameters, " in first and " of them train; a step of 8 takes " in first
    assert " of " in first and first.endswith("on each cpu device")
    assert text.count(" s a step, ") == 1
    line = next(line for line in text.splitlines() if " s a step, " in line)
    assert "an epoch, " in line and "the whole run, of which " in line
    logged = metrics.read(tmp_path / metrics.FILE)
    rates = [entry["learning_rate"] for entry in logged]
    # Steps 2, 4, ..., 12: the second of a warm-up over 4 from 0, then down to 0 after 8.
    assert rates == pytest.approx([x * 1e-3 for x in (0.25, 0.75, 7 / 8, 5 / 8, 3 / 8, 1 / 8)])
    for before, entry in zip([{"seconds": 0.0}, *logged], logged, strict=False):
        speed = 2 * 8 / (entry["seconds"] - before["seconds"])
        assert entry["examples_per_second"] == pytest.approx(speed)
        assert entry["images_per_second"] == pytest.approx(2 * speed)
        assert entry["step_seconds"] == pytest.approx(8 / speed)
        assert 0 <= entry["input_seconds"] <= entry["step_seconds"]
        assert 2**20 < entry["memory_bytes"] < memory.of_host()
        assert set(metrics.TIMED) < set(entry)
    assert " examples and " in line and " images per second: " in line


def test_waiting_for_input_is_said_once_with_what_helps(tmp_path, root, capsys, monkeypatch):
    """From a twentieth of the time on; compiling and what this process did before do not count."""
    changes = ("steps=400", "data.threads=1", "eval.benchmark=none", "data.pixels=decode")
    made, data = runs.set_up(runs.tiny(tmp_path, root, *changes))
    state = SimpleNamespace(step=100, seconds=50.0, waited=9.0)
    watch, values = notices.Notices(made, data, state), {"gradient_norm": 1.0, "loss": 1.0}

    def made_steps(count, waited):
        for _ in range(count):
            state.step, state.seconds = state.step + 1, state.seconds + 0.5
            state.waited += waited
            watch.step(state, values)
        return [line for line in said(capsys).splitlines() if "for input" in line]

    assert made_steps(2, 0.5) == [] and made_steps(20, 0.024) == []
    (line,) = made_steps(20, 0.1)
    assert "in the last 20 steps the devices waited 20% of the time for input, 0.1 of 0.5 s" in line
    assert "data.pixels=memory or disk (now decode)" in line and "larger batch (now batch=8" in line
    assert f"data.threads={os.cpu_count()} (now 1)" in line
    assert made_steps(60, 0.4) == []
    of_bank = replace(data, place="disk")
    two = runs.set_up(runs.tiny(tmp_path / "two", root, *changes, stage=2))[0]
    assert "loss.references=device (now disk)" in notices.quicker_input(two, of_bank)
    assert "pixels" not in notices.quicker_input(two, of_bank)
    gpus = [SimpleNamespace(platform="gpu")] * 8
    for devices, helps in ((gpus, True), (gpus[:1], False), (jax.local_devices() * 2, False)):
        monkeypatch.setattr(jax, "local_devices", lambda devices=devices: devices)
        advice = notices.quicker_input(made, data)
        assert ("each of the 8 GPUs (launch/local_gpu.sh --process-per-gpu)" in advice) is helps


def test_times_for_people():
    seconds = (0.25, 45, 119, 125, 3600, 3 * 3600, 30 * 3600, 4 * 86_400)
    words = ["0.2 s", "45 s", "119 s", "2.1 min", "60 min", "3.0 h", "30 h", "4.0 days"]
    assert [notices.duration(s) for s in seconds] == words


def test_too_little_memory_is_said_before_the_first_step(tmp_path, root, monkeypatch):
    config = runs.tiny(tmp_path, root, "steps=1", "eval.benchmark=none", "data.pixels=memory")
    monkeypatch.setattr(memory, "free_on_host", lambda: 0)  # not known, so nothing is refused
    monkeypatch.setattr(memory, "of_host", lambda: 8 * 1000)
    with pytest.raises(memory.OutOfMemory, match=r"this run needs .* before its first step \(para"):
        train.train(config)
    made, data = runs.set_up(config)
    program = jax.jit(lambda x: x + 1).lower(jax.numpy.zeros(10**6)).compile()
    advice = r"batch=8\); loss.chunk=4 \(now 0\).*model.remat=layers .*bfloat16.*pixels=disk or d"
    with pytest.raises(
        memory.OutOfMemory, match=f"takes .* of 1.0 kB on each cpu device.*{advice}"
    ):
        memories.told(made, data, program)
    monkeypatch.setattr(memory, "of_host", lambda: 8 * 10**12)
    assert "of 1.0 TB on each cpu device" in memories.told(made, data, program)


def exhausted(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")


@pytest.mark.parametrize("what", ["compile", "step", "bank", "evaluation", "host"])
def test_out_of_memory_ends_in_advice(what, tmp_path, root, monkeypatch):
    """Wherever it happens; the same error of jax, and of Python."""
    stage, wanted = 1, r"while training .*batch=8\).* loss.chunk=4"
    changes = ["steps=1", *(["eval.benchmark=none"] if what != "evaluation" else [])]
    if what == "compile":
        monkeypatch.setattr(jax.stages.Lowered, "compile", exhausted)
    elif what == "step":
        made = steps.make

        class Update:
            def __init__(self, *arguments):
                self.lower = made(*arguments).lower

            __call__ = exhausted

        monkeypatch.setattr(steps, "make", Update)
    elif what == "bank":
        stage, wanted = 2, r"while building the bank .*loss.bank_dtype=bfloat16 .*references=disk"
        monkeypatch.setattr("cir_jax.bank.build.encode.stream", exhausted)
    elif what == "evaluation":
        wanted = r"while encoding images .*a smaller eval.batch \(now 16\); model.dtype=bfloat16"
        monkeypatch.setattr("cir_jax.retrieval.retriever.encode.encode", exhausted)
    else:

        def refuse(*_):
            raise MemoryError

        monkeypatch.setattr("cir_jax.training.train._place", refuse)
    with pytest.raises(memory.OutOfMemory, match=wanted) as caught:
        train.train(runs.tiny(tmp_path, root, *changes, stage=stage))
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def test_evaluating_out_of_memory_is_status_2(tmp_path, root, monkeypatch, capsys):
    train.train(runs.tiny(tmp_path, root, "steps=1", "eval.benchmark=none"))
    monkeypatch.setattr("cir_jax.retrieval.retriever.encode.encode", exhausted)
    config, retriever = load.from_run(tmp_path, "last", ["eval.benchmark=fashioniq"])
    with pytest.raises(memory.OutOfMemory, match=r"What takes less: a smaller eval.batch \(now 16"):
        benchmark.build(config).run(retriever)
    flags = ["--workdir", str(tmp_path), "--step", "last", "--set", "eval.benchmark=fashioniq"]
    assert main.main(["evaluate", *flags]) == 2
    assert "out of memory while encoding images" in capsys.readouterr().err


def test_a_batch_of_one_has_no_negative(tmp_path, root):
    for stage in (0, 1):
        config = runs.tiny(tmp_path, root, "batch=1", stage=stage, model="clip_sum")
        with pytest.raises(UserError, match=r"batch=1 leaves stage .* no negative"):
            runs.set_up(config)


def test_no_step_at_all(tmp_path, root):
    with pytest.raises(UserError, match=r"^epochs=0 and steps=0 train nothing; set one of them"):
        train.train(runs.tiny(tmp_path, root, "epochs=0", "steps=0"))


def test_one_target_of_all(tmp_path, capsys):
    root = folder(tmp_path / "data", ["1.png"] * 8, [f"text {i}" for i in range(8)])
    with pytest.raises(UserError, match=REFUSED_TARGET):
        runs.set_up(small(tmp_path, root))
    runs.set_up(small(tmp_path, root, stage=2))
    assert "warning: all 8 triplets have one and the same image, '1.png', as" in said(capsys)


def test_a_bank_of_one_row(tmp_path):
    root = folder(tmp_path / "data", ["1.png"] * 8, ["text"] * 8)
    optimized = tmp_path / "same.json"
    names = [f"{i}.png" for i in range(4)]
    optimized.write_text(json.dumps([["1.png"], ["1.png"], dict.fromkeys(names, 0)]))
    with pytest.raises(UserError, match=r"would have 1 row: .* the loss is always 0"):
        runs.set_up(small(tmp_path, root, f"data.optimized={optimized}", stage=2))


def test_fewer_triplets_than_a_batch(tmp_path):
    root = folder(tmp_path / "data", ["1.png", "2.png"] * 4, ["a", "b"] * 4)
    with pytest.raises(UserError, match="batch 16 is larger than the 8 triplets; use a smaller"):
        runs.set_up(small(tmp_path, root, "batch=16"))


def test_equal_texts_and_a_rate_of_zero_are_said(tmp_path, capsys):
    root = folder(tmp_path / "data", ["1.png", "0.png"] * 4, ["next"] * 8)
    runs.set_up(small(tmp_path, root, "optim.learning_rate=0"))
    text = said(capsys)
    assert "warning: all 8 triplets have the text 'next'" in text
    assert "warning: optim.learning_rate=0.0: the steps of this run change nothing" in text


def test_batches_of_one_target_and_steps_without_gradient_are_said_once(tmp_path, capsys):
    """Two targets, of which a batch of 8 draws one alone sooner or later; here by construction."""
    watch = degenerate.Watch(4)
    same, other = {"target_id": jax.numpy.full(4, 7)}, {"target_id": jax.numpy.arange(4)}
    for step, rows in enumerate((other, same, same), start=1):
        watch.batch(step, rows, needs_bank=False)
        watch.batch(step, same, needs_bank=True)
    assert said(capsys).count("all targets of the batch of step 2 are one image") == 1
    still, moving = ({"gradient_norm": x, "loss": 0.0} for x in (0.0, 1e-9))
    for step, values in enumerate((still, still, moving, still, still), start=1):
        watch.step(step, values)
    assert said(capsys) == ""
    for step in range(6, 10):
        watch.step(step, still)
    assert (
        said(capsys).count("the gradient was exactly 0 in 3 steps up to step 6, at a loss of 0")
        == 1
    )


def test_a_loss_of_zero_does_not_train_in_silence(tmp_path, capsys):
    """A stage of one's own whose loss is nothing."""
    stage = tmp_path / "nothing.py"
    stage.write_text(
        "from cir_jax.training.stages import one_in_batch\n"
        "KEYS = one_in_batch.KEYS\n\n\n"
        "class Stage(one_in_batch.Stage):\n"
        "    def loss(self, *arguments):\n"
        "        losses, metrics = super().loss(*arguments)\n"
        "        return 0 * losses, metrics\n"
    )
    stage.write_text(stage.read_text().replace("KEYS = one_in_batch.KEYS\n", _KEYS))
    root = folder(tmp_path / "data", ["1.png", "0.png"] * 4, [f"text {i}" for i in range(8)])
    config = configs.override(small(tmp_path, root), [f"stage={stage}", "steps=4"])
    train.train(config)
    assert "warning: the gradient was exactly 0 in 3 steps up to step 3" in said(capsys)


_KEYS = 'KEYS = {"temperature": (0.02, "of the softmax", "(0, 100]")}\n'
