# SPDX-License-Identifier: Apache-2.0
"""Texts of triplets: templates, the limit of tokens, and rewriting by a plug-in."""

import json

import pytest

from cir_jax import config
from cir_jax.errors import UserError
from cir_jax.generation import modify, output
from cir_jax.generation.images import Pool

CAPTIONS = {"a": "A {cat}.", "b": "two dogs", "c": "a red car"}
PAIRS = [{"reference": "a", "target": "b"}, {"reference": "b", "target": "c", "rank": 4}]
# A captioner as a user writes one: it keeps what it was asked in a file, and answers by script.
PLUGIN = """
import json
from cir_jax.generation.captioner import Reply

class Captioner:
    identity = {"captioner": "scripted", "model": "m"}

    @classmethod
    def from_config(cls, section, seed, names):
        assert names == []
        one = cls()
        one.file = section.model
        return one

    def generate(self, requests):
        for request in requests:
            with open(self.file + ".asked", "a") as asked:
                asked.write(json.dumps([request.key, request.prompt, request.attempt]) + "\\n")
            with open(self.file) as file:
                script = json.load(file)
            reference, target, number = request.key.split("\\t")
            answers = script.get(target + number, ["make it " + target + number])
            yield Reply(request.key, answers[min(request.attempt, len(answers) - 1)])
"""


def made(workdir, *changes, pairs=PAIRS, captions=CAPTIONS):
    return modify.run(config.load("positives:folder", changes), pairs, captions, workdir)


@pytest.fixture
def rewriter(tmp_path):
    """(options, write a script of answers, what was asked so far)."""
    plugin, script = tmp_path / "mine.py", tmp_path / "script.json"
    plugin.write_text(PLUGIN)
    script.write_text("{}")
    asked = tmp_path / "script.json.asked"
    return (
        (f"rewrite.captioner={plugin}", f"rewrite.model={script}"),
        lambda **answers: script.write_text(json.dumps(answers)),
        lambda: [json.loads(line) for line in asked.open()] if asked.exists() else [],
    )


def test_templates(tmp_path):
    first, second = made(tmp_path)
    assert first.texts == ("two dogs instead of A {cat}.", "Unlike A {cat}., I want two dogs")
    assert first.captions == ("A {cat}.", "two dogs") and first.rewritten == ()
    assert second.pair == PAIRS[1] and second.texts[0] == "a red car instead of two dogs"
    # One template without a comma, and several as a Python list; braces are doubled as usual.
    (first, _) = made(tmp_path, "modify.templates=show {target} {{now}}")
    assert first.texts == ("show two dogs {now}",)
    (first, _) = made(tmp_path, "modify.templates=('{target}, please','not {reference}: {target}')")
    assert first.texts == ("two dogs, please", "not A {cat}.: two dogs")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words, fits", [(75, True), (76, False)])
def test_limit_of_tokens(words, fits, tmp_path, capsys):
    """A text of 77 tokens, start and end included, is the longest."""
    captions = {"a": "dog", "b": " ".join(["red"] * words), "c": "x"}
    (one,) = made(
        tmp_path,
        "modify.templates={target}!",
        captions=captions | {"b": captions["b"][4:]},
        pairs=PAIRS[:1],
    )
    assert one.texts[0].endswith("!") == fits and one.texts[0].count("red") == words - 1
    (one,) = made(tmp_path, "modify.templates={target}", captions=captions, pairs=PAIRS[:1])
    assert one.texts == (captions["b"],)  # itself unchecked
    said = capsys.readouterr().out
    assert ("became the target's caption" in said) == (not fits)
    assert ("warning: 1 captions are over 77 tokens themselves" in said) == (not fits)


def test_only_the_text_that_is_too_long_falls_back(tmp_path, capsys):
    captions = {"a": " ".join(["red"] * 71), "b": "two dogs", "c": "x"}
    (one,) = made(tmp_path, captions=captions, pairs=PAIRS[:1])
    assert one.texts == (f"two dogs instead of {captions['a']}", "two dogs")
    assert "1 texts over 77 tokens became the target's caption" in capsys.readouterr().out
    (one,) = made(tmp_path, "modify.context=90", captions=captions, pairs=PAIRS[:1])
    assert one.texts[1] == f"Unlike {captions['a']}, I want two dogs"


@pytest.mark.parametrize(
    "change, message",
    [
        ("modify.templates=()", "modify.templates is empty; give at least one"),
        ("modify.templates={reference} only", r"'{reference} only' does not name {target}"),
        ("modify.templates=Unlike {reference}, I want {target}", r"'Unlike {reference}' does no"),
        ("modify.templates={goal}", r"'{goal}' cannot be filled in \(KeyError\('goal'\)\); it m"),
        ("modify.templates={target} {}", r"cannot be filled in \(IndexError"),
        ("modify.templates={target", r"'{target' cannot be filled in \(ValueError"),
        ("modify.templates={target.name}", r"cannot be filled in \(AttributeError"),
        ("modify.templates={target[name]}", r"cannot be filled in \(TypeError"),
        ("modify.templates=3", r"modify.templates: 3 cannot be filled in"),
        ("modify.context=0", r"modify.context=0 is out of range; it must be at least 3"),
        ("modify.context=2", r"modify.context=2 is out of range"),
    ],
)  # fmt: skip
def test_template_errors(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        made(tmp_path, change)


def test_rewriting(tmp_path, rewriter):
    options, _, asked = rewriter
    first, second = made(tmp_path, *options, "rewrite.texts=2", "rewrite.words=9")
    assert first.rewritten == ("make it b0", "make it b1")
    assert second.rewritten == ("make it c0", "make it c1")
    assert first.texts == ("two dogs instead of A {cat}.", "Unlike A {cat}., I want two dogs")
    assert [key for key, _, _ in asked()] == ["a\tb\t0", "a\tb\t1", "b\tc\t0", "b\tc\t1"]
    prompt = asked()[0][1]
    assert "First picture: A {cat}\nSecond picture: two dogs\n" in prompt and "most 9 " in prompt
    kept = [json.loads(line) for line in (tmp_path / modify.REWRITES).open()]
    assert [(r["pair"], r["text"]) for r in kept][1] == ("a\tb\t1", "make it b1")
    assert kept[0].keys() >= {"prompt", "words", "seed", "date", "captioner", "model"}
    again = made(tmp_path, *options, "rewrite.texts=2", "rewrite.words=9")
    assert again == [first, second] and len(asked()) == 4  # nothing is asked for twice
    more = made(tmp_path, *options, "rewrite.texts=3", "rewrite.words=9")
    assert more[0].rewritten[2] == "make it b2" and len(asked()) == 6


def test_refused_texts_are_asked_again_then_listed(tmp_path, rewriter, capsys):
    options, script, asked = rewriter
    script(b0=["I'm sorry, I cannot", "", "make it small"], c0=[""], c1=["", "make it red"])
    changes = (*options, "rewrite.texts=2", "rewrite.attempts=3")
    first, second = made(tmp_path, *changes)
    assert first.rewritten == ("make it small", "make it b1")
    assert second.rewritten == ("make it red",)  # one of two is enough
    (listed,) = [json.loads(line) for line in (tmp_path / modify.REFUSED).open()]
    assert (listed["pair"], listed["problem"], listed["attempts"]) == ("b\tc\t0", "empty", 3)
    said = capsys.readouterr().out
    assert "warning: 1 texts were refused (1 x empty), listed in" in said
    assert "; 0 pairs without a text are left out" in said
    count = len(asked())
    script()
    first, second = made(tmp_path, *changes)
    assert second.rewritten == ("make it c0", "make it red") and len(asked()) == count + 1
    assert not (tmp_path / modify.REFUSED).exists()


def test_pairs_without_a_text(tmp_path, rewriter, capsys):
    options, script, _ = rewriter
    script(c0=[""])
    (first,) = made(tmp_path, *options)
    assert first.pair == PAIRS[0]
    assert "; 1 pairs without a text are left out" in capsys.readouterr().out
    both = made(tmp_path, *options, "rewrite.keep_templates=true")
    assert [one.rewritten for one in both] == [("make it b0",), ()]
    script(b0=[""], c0=[""])
    (tmp_path / modify.REWRITES).unlink()
    with pytest.raises(UserError, match=r"no text was rewritten; see .*rewrites_refused.jsonl"):
        made(tmp_path, *options)
    assert len(made(tmp_path, *options, "rewrite.keep_templates=true")) == 2


def test_rewritten_texts_have_the_same_limit(tmp_path, rewriter, capsys):
    options, script, _ = rewriter
    script(b0=[" ".join(["make"] * 80)])
    first, second = made(tmp_path, *options, "rewrite.max_words=200")
    assert first.rewritten == ("two dogs",) and second.rewritten == ("make it c0",)
    assert "1 texts over 77 tokens became the target's caption" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [False, True])
def test_files_of_rewritten_texts(keep, tmp_path, rewriter):
    options, script, _ = rewriter
    script(c0=[""])
    pool = Pool({n: f"/images/{n}.png" for n in "abc"})
    for layout, name, key in (
        ("fashioniq", "cap.extend_clip_llm.train.json", "captions"),
        ("cirr", "cap.rc2.train.extend_clip_llm.json", "caption"),
        ("cc", "cap.cc.train.json", "captions"),
    ):
        changes = (f"rewrite.keep_templates={keep}", f"output.layout={layout}", *options)
        settings = config.load("positives:folder", changes)
        triplets = modify.run(settings, PAIRS, CAPTIONS, tmp_path)
        neutral, released = output.run(settings, triplets, pool, tmp_path)
        assert released.name == name
        records = json.loads(released.read_text())
        templates = ["two dogs instead of A {cat}.", "Unlike A {cat}., I want two dogs"]
        assert records[0][key] == templates and list(records[0])[-1] == "llm_caption"
        # Readers of such a file want the field in every record.
        wanted = ["make it b0", *(["a red car instead of two dogs"] if keep else [])]
        assert [r["llm_caption"] for r in records] == wanted
        lines = [json.loads(line) for line in neutral.open()]
        assert [r["meta"]["llm_caption"] for r in lines] == wanted
        assert lines[0]["texts"] == ["make it b0", *(templates if keep else [])]
        if keep:
            assert lines[1]["texts"][0] == wanted[1] and lines[1]["meta"]["rank"] == 4


@pytest.mark.parametrize(
    "change, message",
    [
        ("rewrite.captioner=nobody", r"no 'nobody' in captioners; there are: local, server, texts"),
        ("rewrite.captioner=texts", r"captioner texts looks captions up; it cannot rewrite texts"),
        ("rewrite.captioner=gone.py", r"no file gone.py for captioners"),
        ("rewrite.prompt={image}", r"rewrite.prompt='{image}' cannot be filled in"),
        (
            "rewrite.texts=0",
            r"rewrite.texts=0 is out of range; it must be at least 1",
        ),
        ("rewrite.words=0", r"rewrite.words=0 is out of range"),
    ],
)
def test_rewriting_errors(change, message, tmp_path, rewriter):
    with pytest.raises(UserError, match=message):
        made(tmp_path, *rewriter[0], change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "url=http://x/v1",
            r"read by rewrite.captioner=server, but this config has rewrite.captio",
        ),
        ("texts=3", r"but rewrite.captioner is empty, which rewrites nothing"),
        ("keep_templates=true", r"but rewrite.captioner is empty, which rewrites nothing"),
    ],
)
def test_settings_of_no_rewriter(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        made(tmp_path, f"rewrite.{change}")
