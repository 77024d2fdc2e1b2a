# SPDX-License-Identifier: Apache-2.0
"""Step two: no image is captioned twice, no bad reply is kept, and captions that are there."""

import re

import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.generation import generate_text, journal, replies
from cir_jax.generation.captioner import Reply, Request
from tests import runs
from tests.generation import pictures
from tests.generation.pictures import captions

PROMPT = "please briefly describe the image in 10 words"


@pytest.fixture
def root(tmp_path):
    """Six pictures, 05.png the same as 00.png."""
    return pictures.folder(tmp_path / "in", 6)


def keys(asked):
    return [key for key, _, _ in asked]


def test_every_different_image_once(tmp_path, root):
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    first = captions(made, root, *counting.sets)
    assert first == {f"0{i}.png": f"a picture of 0{i}.png" for i in range(5)}
    assert counting.asked() == [[name, 0, PROMPT] for name in first]
    assert captions(made, root, *counting.sets) == first and counting.asked() == []
    # A duplicate that sorts before it stands for the group now; its caption is there. So are those
    # of files that were renamed, even if they changed names.
    (root / "0.png").write_bytes((root / "00.png").read_bytes())
    (root / "sub").mkdir()
    (root / "01.png").rename(root / "sub" / "01.png")
    (root / "03.png").rename(root / "01.png")
    (root / "04.png").rename(root / "03.png")
    assert captions(made, root, *counting.sets) == {
        "0.png": first["00.png"], "01.png": first["03.png"], "02.png": first["02.png"],
        "03.png": first["04.png"], "sub/01.png": first["01.png"],
    }  # fmt: skip
    assert counting.asked() == []
    # A new image is captioned, and one that was replaced is captioned anew.
    Image.fromarray(pictures.pixels(77)).save(root / "02.png")
    Image.fromarray(pictures.pixels(78)).save(root / "06.png")
    counting.answers({"02.png": ["another one"]})
    assert captions(made, root, *counting.sets)["02.png"] == "another one"
    assert keys(counting.asked()) == ["02.png", "06.png"]
    assert captions(made, root, *counting.sets)["02.png"] == "another one"
    assert counting.asked() == []


def test_the_record_beside_a_caption(tmp_path, root):
    captions(tmp_path / "made", root, *pictures.Counting(tmp_path).sets, "caption.words=4")
    records = pictures.lines(tmp_path / "made" / "captions.jsonl")
    date, hashed = records[0].pop("date"), records[0].pop("pixels")
    assert records[0] == {
        "image": "00.png", "text": "a picture of 00.png", "captioner": "counting", "model": "m",
        "prompt": "please briefly describe the image in 4 words", "words": 4, "seed": 42,
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", date)
    assert len(hashed) == 32 and len({r["pixels"] for r in records[1:]} | {hashed}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("caption.prompt=describe it", r"with prompt='please .*in 10 words', and .* 'describe it'"),
        ("caption.model=n", "with model='m', and this run asks for 'n'; set it back, use another"),
        ("seed=1", "with seed=42, and this run asks for 1"),
        ("caption.words=9", "with words=10, and this run asks for 9"),
        (
            "caption.captioner=texts; caption.file={tmp}/c.json",
            "with captioner='counting', and this run asks for 'texts'",
        ),
    ],
)
def test_other_settings_in_one_folder_are_refused(tmp_path, root, change, message):
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    captions(made, root, *counting.sets)
    before = (made / "captions.jsonl").read_bytes()
    counting.asked()
    runs.dump(tmp_path / "c.json", {"00.png": "x"})
    change = change.replace("{tmp}", str(tmp_path))
    sets = () if "captioner" in change else counting.sets
    with pytest.raises(UserError, match=r"captions.jsonl:\d was written " + message):
        captions(made, root, *sets, *change.split("; "))
    assert counting.asked() == [] and (made / "captions.jsonl").read_bytes() == before


def test_lowered_max_words(tmp_path, root):
    made, counting = tmp_path / "made", pictures.Counting(tmp_path)
    captions(made, root, *counting.sets)
    counting.asked()
    with pytest.raises(UserError, match=r"0 of \d images have a caption.*over 1 words"):
        captions(made, root, *counting.sets, "caption.max_words=1", "caption.attempts=1")
    assert counting.asked()


BAD = [
    ("", "empty"),
    (" .. ", "empty"),
    ("I'm sorry, but I cannot see it", "a refusal"),
    ("As an AI language model I can't", "a refusal"),
    ("a picture of...", "cut at 9 tokens"),
    ("word " * 41, "over 40 words: 41"),
    ("图" * 961, "over 40 words of 24 letters: 961 letters"),
    ("a dog\nIt runs.", "several lines"),
    ("a d\ufffdg", "broken characters"),
    ("a d\ud83dg", "broken characters"),
]


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_bad_replies_are_asked_again_then_listed(tmp_path, root, bad, why, capsys):
    counting = pictures.Counting(tmp_path, {"01.png": [bad, bad, "a dog"], "03.png": [bad]})
    made = tmp_path / "made"
    found = captions(made, root, *counting.sets)
    assert found["01.png"] == "a dog" and sorted(found) == ["00.png", "01.png", "02.png", "04.png"]
    again = [[k, a] for k, a, _ in counting.asked() if a]
    assert again == [["01.png", 1], ["03.png", 1], ["01.png", 2], ["03.png", 2]]
    assert pictures.lines(made / "captions_refused.jsonl") == [
        {"image": "03.png", "problem": why, "reply": bad, "attempts": 3}
    ]
    assert f"1 of 5 images have no caption (1 x {why.split(':')[0]})" in capsys.readouterr().out
    assert bad not in [r["text"] for r in pictures.lines(made / "captions.jsonl")]
    # The same command asks for what is missing, and for nothing else.
    counting.answers({})
    assert len(captions(made, root, *counting.sets)) == 5
    assert keys(counting.asked()) == ["03.png"] and not (made / "captions_refused.jsonl").exists()


def test_no_caption_at_all(tmp_path, root):
    counting = pictures.Counting(tmp_path, {f"0{i}.png": ["sorry"] for i in range(1, 5)})
    message = r"1 of 5 images have a caption, and pairs need two \(4 x a refusal\); see .*refused"
    with pytest.raises(UserError, match=message):
        captions(tmp_path / "made", root, *counting.sets)
    assert len(pictures.lines(tmp_path / "made" / "captions_refused.jsonl")) == 4
    assert len(pictures.lines(tmp_path / "made" / "captions.jsonl")) == 1


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (' "A red dress." \n', "A red dress."),
        ("Here is a caption:\n\n  A  red\tdress ", "A red dress"),
        ("“a dog”", "a dog"),
        ('"red" or "blue"', '"red" or "blue"'),
        ("two\n\nlines", "two\nlines"),
        ("red:", "red:"),
        ("", ""),
        ('"', '"'),
    ],
)
def test_tidying(said, text):
    assert replies.tidy(said) == text


@pytest.mark.parametrize("text", ["Sorryless cat", "A sign: I can", "a cannon", "7", "unfortunate"])
def test_what_is_no_fault(text):
    assert replies.fault(text, 5) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("caption.prompt=in {word} words", r"caption.prompt='in .* cannot be filled in .*{categor"),
        ("caption.prompt=in {words", "cannot be filled in"),
        ("caption.prompt={}", "cannot be filled in"),
        ("caption.prompt={words.no}", "cannot be filled in"),
        ("caption.prompt={words[0]}", "cannot be filled in"),
        ("caption.prompt={category:d}", "cannot be filled in"),
        ("caption.prompt= ", "caption.prompt is empty"),
        ("caption.prompt=a {category!s}", "names {category}, but image '00.png' has none"),
        ("caption.words=0", "caption.words=0 is out of range"),
        ("caption.attempts=0", "caption.attempts=0 is out of range"),
        ("caption.max_words=-1", "caption.max_words=-1 is out of range"),
        ("caption.captioner=servr", "no 'servr' in captioners; there are: local, server, texts"),
    ],
)
def test_bad_settings(tmp_path, root, change, message):
    counting = pictures.Counting(tmp_path)
    with pytest.raises(UserError, match=message):
        captions(tmp_path / "made", root, *counting.sets, change)
    assert counting.asked() == []


def test_the_prompt_of_the_last_category(tmp_path):
    """An image of two FashionIQ categories was captioned twice; the last caption counts."""
    root = runs.write_fashioniq(tmp_path / "fiq", images=12, triplets=30)
    names = [f"B{i:04d}" for i in range(12)]
    runs.dump(root / "image_splits/split.shirt.train.json", names[6:])
    counting = pictures.Counting(tmp_path)
    found = captions(tmp_path / "made", root, *counting.sets, recipe="clip-fashioniq")
    asked = {key: prompt for key, _, prompt in counting.asked()}
    assert sorted(asked) == sorted(found) == names
    for name, prompt in asked.items():
        kind = "shirt" if name in names[6:] else "dress"
        assert prompt == f"please briefly describe the {kind} in 4 words"


class Scripted:
    """A captioner that gives these replies."""

    identity = {"captioner": "scripted", "model": "m", "odd": (1, 2)}  # noqa: RUF012

    def __init__(self, *said):
        self.said = said

    def generate(self, requests):
        wanted = list(requests)
        return map(lambda reply: reply, self.said if wanted[0].attempt == 0 else ())


def write(tmp_path, captioner):
    section = pictures.config(tmp_path, "in").caption
    wanted = {key: Request(key, "p") for key in "ab"}
    return generate_text.generate(
        tmp_path / "w.jsonl", captioner, wanted, section, key="image", seed=1, title=""
    )


def test_plugins_that_do_not_keep_their_promise(tmp_path):
    for said in ([Reply("c", "see")], [Reply("a", "x"), Reply("a", "y")]):
        with pytest.raises(UserError, match=r"'scripted' answered '[ac]', which it was not asked"):
            write(tmp_path, Scripted(*said))
    # No reply at all is no caption, and is listed.
    written = write(tmp_path, Scripted(Reply("b", "bee")))
    assert written.texts == {"a": "x", "b": "bee"} and written.new == 1 and not written.refused
    (tmp_path / "w.jsonl").unlink()
    written = write(tmp_path, Scripted(Reply("b", "bee")))
    assert written.refused == {"a": {"problem": "no reply", "reply": "", "attempts": 3}}
    assert write(tmp_path, Scripted(Reply("a", "ay"))).texts == {"b": "bee", "a": "ay"}


def test_final_replies_are_not_repeated(tmp_path):
    captioner = Scripted(Reply("a", "", "unreadable", final=True), Reply("b", "bee"))
    assert write(tmp_path, captioner).refused["a"]["attempts"] == 1


def test_a_disk_that_fills_up(tmp_path):
    """What was good is there; the generator of the captioner is closed."""
    closed = []

    class Endless(Scripted):
        def generate(self, requests):
            try:
                for request in requests:
                    yield Reply(request.key, "x" * 200)
            finally:
                closed.append(True)

    with pictures.largest_file(500), pytest.raises(UserError, match=r"w.jsonl cannot be written"):
        write(tmp_path, Endless())
    assert closed and [r["image"] for r in pictures.lines(tmp_path / "w.jsonl")] == ["a"]
    assert write(tmp_path, Endless()).new == 1


@pytest.mark.parametrize("line", ["{}", '{"image": 7, "text": "x"}', '{"image": "a"}'])
def test_damaged_records(tmp_path, line):
    (tmp_path / "w.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"w.jsonl:1 has no image or no text; remove that line"):
        write(tmp_path, Scripted())


# Captions that are there already.


def test_records_of_images_that_are_gone_are_kept(tmp_path):
    with journal.Journal(tmp_path / "w.jsonl") as kept:
        kept.add({"image": "gone", "text": "x", "prompt": "other"})
    assert write(tmp_path, Scripted(Reply("a", "ay"), Reply("b", "bee"))).new == 2
    assert [r["image"] for r in pictures.lines(tmp_path / "w.jsonl")] == ["gone", "a", "b"]
