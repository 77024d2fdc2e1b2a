# SPDX-License-Identifier: Apache-2.0
"""Captions by a model in this process: a tiny LLaVA and a tiny chat model, real classes both."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.generation import captioner as contract
from cir_jax.generation.captioner import Request
from cir_jax.generation.captioners import local
from cir_jax.servers import pictures
from tests import runs
from tests.generation import tiny_vlm
from tests.generation.scripted import section


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return tiny_vlm.write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i, color in enumerate([*runs.COLORS.values()] * 2):
        runs.write_image(root / f"{i}.png", color, seed=i, size=(30 + 5 * i, 40))
    return [root / f"{i}.png" for i in range(8)]


def build(model, names=("0.png",), seed=0, **changes):
    return local.Captioner.from_config(
        section(**{"captioner": "local", "model": model} | changes), seed, names
    )


def ask(captioner, images, prompt="Describe the dress", **fields):
    requests = (Request(p.name, prompt, p, **fields) for p in images)
    return {reply.key: reply for reply in captioner.generate(requests)}


def test_plug_in(vlm):
    assert contract.load("local") is local
    captioner = build(vlm, temperature=0.2)
    revision = captioner.identity.pop("revision")
    assert len(revision) == 12 and revision == build(vlm).identity["revision"]
    assert captioner.identity == {
        "captioner": "local", "model": vlm, "dtype": "float32", "temperature": 0.2, "top_p": 1.0,
        "max_side": 0,
    }  # fmt: skip


def test_captions(vlm, images):
    """Of its image and its prompt, whatever is batched with it."""
    batched = ask(build(vlm, batch=3), images)
    assert batched == ask(build(vlm, batch=1), images[::-1])
    texts = [r.text for r in batched.values()]
    assert len(set(texts)) > 4 and not any(r.problem for r in batched.values())
    assert {word for text in texts for word in text.split()} <= set(tiny_vlm.WORDS)
    assert ask(build(vlm), images, "Name the colours of it") != batched


def test_repetitions_are_drawn(vlm, images):
    """Each from its own seed, so that a run that goes on after a stop draws the same."""
    captioner = build(vlm)
    some = images[:4]
    first, second = (ask(captioner, some, attempt=i) for i in (1, 2))
    assert first != second and first != ask(captioner, some)
    assert ask(build(vlm, batch=2), images[2:4], attempt=1).items() <= first.items()
    assert ask(build(vlm, seed=1), some, attempt=1) != first
    drawn = ask(build(vlm, temperature=1.5), some)
    assert drawn == ask(build(vlm, temperature=1.5), some) != ask(captioner, some)


def test_text_and_images_together(vlm, chat, images):
    requests = [Request("t1", "Say it"), Request("i", "Say it", images[0]), Request("t2", "Name")]
    replies = list(build(vlm).generate(requests))
    assert sorted(r.key for r in replies) == ["i", "t1", "t2"] and all(r.text for r in replies)
    replies = list(build(chat, names=()).generate([requests[0], requests[2]]))
    assert [r.key for r in replies] == ["t1", "t2"] and all(r.text for r in replies)


def test_unreadable_image(vlm, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "cut.png").write_bytes(images[0].read_bytes()[:300])
    bad = [tmp_path / n for n in ("broken.png", "cut.png", "missing.png")]
    replies = ask(build(vlm), [*bad, *images])
    assert {k: replies.pop(k) for k in [p.name for p in bad]}.keys() and len(replies) == 8
    assert replies == ask(build(vlm), images)
    for path in bad:
        (reply,) = ask(build(vlm), [path]).values()
        assert reply.final and not reply.text and path.name in reply.problem


def test_cut(vlm, images):
    replies = ask(build(vlm, max_tokens=2), images)
    assert {r.problem for r in replies.values()} == {"cut at 2 tokens"}
    assert all(r.text and not r.final for r in replies.values())


def test_one_request_that_the_model_cannot_take(vlm, images):
    """A prompt with the image's own token asks for two images where there is one."""
    requests = [Request(p.name, "Describe", p) for p in images[:4]]
    requests[2] = Request("odd", "Describe <image>", images[2])
    replies = {r.key: r for r in build(vlm).generate(requests)}
    assert replies["odd"].final and "the model cannot take it" in replies["odd"].problem
    assert all(r.text for k, r in replies.items() if k != "odd") and len(replies) == 4
    with pytest.raises(UserError, match=r"served none of the first 3 .*give another model"):
        ask(build(vlm), images, "Describe <image>")


def test_requests_are_drawn_lazily(vlm, images):
    drawn = []

    def source():
        for path in images:
            drawn.append(path)
            yield Request(path.name, "Describe", path)

    replies = build(vlm, batch=2).generate(source())
    next(replies)
    assert len(drawn) == 2
    replies.close()


def test_bfloat16(vlm, images):
    replies = ask(build(vlm, dtype="bfloat16"), images)
    assert all(r.text for r in replies.values())
    assert build(vlm, dtype="bfloat16").identity["dtype"] == "bfloat16"


def test_size_of_images(tmp_path):
    Image.new("RGBA", (90, 30)).save(tmp_path / "a.png")
    image = pictures.small_image(tmp_path / "a.png", 60)
    assert image.size == (60, 20) and image.mode == "RGB"
    assert pictures.small_image(str(tmp_path / "a.png"), 0).size == (90, 30)


def test_out_of_memory(vlm, images, monkeypatch):
    import torch

    captioner = build(vlm, batch=8)

    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(captioner, "_texts", full)
    with pytest.raises(UserError, match="batch=8 does not fit into the memory of cpu; lower batch"):
        ask(captioner, images)


def test_without_torch(vlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'cir_jax\[torch\]', or use captioner=server"):
        build(vlm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"model": "/nowhere/llava"}, "model='/nowhere/llava' cannot be loaded .*give the folder"),
        ({"batch": 0}, "batch=0 is below 1"),
        ({"dtype": "bf16"}, "dtype='bf16' is unknown; .*Did you mean 'bfloat16'"),
        ({"device": "gpu"}, "device='gpu' is unknown; use auto"),
        ({"device": "cuda:7"}, "device='cuda:7' is not there, PyTorch sees"),
        ({"top_p": 1.5}, "top_p=1.5 is outside"),
    ],
)
def test_config_errors(vlm, changes, message):
    with pytest.raises(UserError, match=message):
        build(**{"model": vlm} | changes)


def test_a_model_without_eyes(chat):
    with pytest.raises(UserError, match=r"is of type 'llama', which reads no images; give an ima"):
        build(chat)


def test_no_chat_template(chat, tmp_path):
    shutil.copytree(chat, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        list(build(str(tmp_path / "base"), names=()).generate([Request("a", "x")]))


def test_weights_that_are_gone(vlm, tmp_path):
    folder = Path(shutil.copytree(vlm, tmp_path / "lost"))
    (folder / "model.safetensors").unlink()
    captioner = build(str(folder))
    assert captioner.identity["revision"] != build(vlm).identity["revision"]
    with pytest.raises(UserError, match=r"model='.*lost' cannot be loaded"):
        list(captioner.generate([Request("a", "x")]))


def test_the_same_model_each_time(vlm, tmp_path):
    again = Path(tiny_vlm.write_vlm(tmp_path / "again"))
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (Path(vlm) / weights).read_bytes()
    assert json.loads((again / "config.json").read_text())["model_type"] == "llava"
