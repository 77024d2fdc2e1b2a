# SPDX-License-Identifier: Apache-2.0
"""Step two: no image is captioned twice, no bad reply is kept, and captions that are there."""

import json
import re

import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.positives.scaling import caption, dedupe, images, journal, replies, writing
from cir_jax.positives.scaling.captioners import texts
from cir_jax.positives.scaling.captioners.contract import Reply, Request
from tests import runs
from tests.positives.importer_samples import shard
from tests.positives.scaling import pictures

PROMPT = "please briefly describe the image in 10 words"


@pytest.fixture
def root(tmp_path):
    """Six pictures, 05.png the same as 00.png."""
    return pictures.folder(tmp_path / "in", 6)


def captions(workdir, root, *changes, recipe="folder"):
    """Image -> caption."""
    config = pictures.config(workdir, root, *changes, recipe=recipe)
    pool, groups = dedupe.run(config, images.read(config), workdir)
    return caption.run(config, pool, groups, workdir)


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
            "caption.captioner=texts; caption.url=; caption.file={tmp}/c.json",
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
    with pytest.raises(UserError, match=r"captions.jsonl:\d was written " + message):
        captions(made, root, *counting.sets, *change.split("; "))
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
        ("caption.words=0", "caption.words=0 is below 1"),
        ("caption.attempts=0", "caption.attempts=0 is below 1"),
        ("caption.max_words=-1", "caption.max_words=-1 is negative"),
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
    return writing.write(
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


def given(tmp_path, root, name, content, *changes, workdir="made"):
    """Captions of a file."""
    (tmp_path / name).write_text(content)
    sets = ("caption.captioner=texts", f"caption.file={tmp_path / name}", "caption.model=")
    return captions(tmp_path / workdir, root, *sets, *changes)


ROWS = {f"0{i}.png": f"caption, {i}" for i in range(5)}
ITEMS = ROWS.items()
LAYOUTS = {
    "c.json": ROWS,
    "list.json": [{"image": f"x/{n}", "image_id": n, "caption": [t, "other"]} for n, t in ITEMS],
    "it.json": [{"image_id": n[:2], "image_path": f"/d/{n}", "caption": t} for n, t in ITEMS],
    "c.jsonl": "".join(json.dumps({"image": n, "title": t}) + "\n" for n, t in ITEMS),
    "c.csv": "file_name,alt_text\n" + "".join(f'{n},"{t}"\n' for n, t in ITEMS),
    "c.tsv": "path\ttext\n" + "".join(f"{n}\t{t}\n" for n, t in ITEMS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, root, name):
    content = LAYOUTS[name] if isinstance(LAYOUTS[name], str) else json.dumps(LAYOUTS[name])
    assert given(tmp_path, root, name, content) == ROWS
    record = pictures.lines(tmp_path / "made" / "captions.jsonl")[0]
    assert record["model"] == str(tmp_path / name) and record["words"] is None
    assert record["prompt"] == "" and record["captioner"] == "texts"


def test_captions_in_shards(tmp_path, root):
    for part in range(5):
        picture = (root / f"0{part}.png").read_bytes()
        members = {f"0{part}.png": picture, f"0{part}.txt": f"caption, {part}".encode()}
        shard(tmp_path / f"{part}.tar", members)
    sets = (f"caption.file={tmp_path}/*.tar", "caption.captioner=texts")
    assert captions(tmp_path / "made", root, *sets) == ROWS
    model = pictures.lines(tmp_path / "made" / "captions.jsonl")[0]["model"]
    assert model.endswith("2.tar and 2 more")


def test_a_key_of_your_own(tmp_path, root):
    content = json.dumps([{"image": n, "caption": "no", "my": {"own": t}} for n, t in ROWS.items()])
    assert given(tmp_path, root, "c.json", content, "caption.text_field=my.own") == ROWS


def test_a_caption_of_a_duplicate_will_do(tmp_path, root):
    rows = {n: t for n, t in ROWS.items() if n != "00.png"} | {"05.png": "of the other"}
    expected = {"00.png": "of the other"} | {n: t for n, t in ROWS.items() if n != "00.png"}
    assert given(tmp_path, root, "c.json", json.dumps(rows)) == expected
    assert given(tmp_path, root, "c.json", json.dumps(rows)) == expected


def test_captions_that_are_missing(tmp_path, root):
    rows = {"01.png": "  ", "02.png": "I'm sorry I", "03.png": "two\nlines", "04.png": "a\ufffd"}
    assert given(tmp_path, root, "c.json", json.dumps(rows)) == {
        "02.png": "I'm sorry I", "03.png": "two lines",  # they are what somebody wrote
    }  # fmt: skip
    listed = pictures.lines(tmp_path / "made" / "captions_refused.jsonl")
    assert {r["image"]: r["problem"] for r in listed} == {
        "00.png": "no caption in the files", "01.png": "no caption in the files",
        "04.png": "broken characters",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"c.json: no caption of any of the 6 images, such as '00"):
        given(tmp_path, root, "c.json", '{"00.png": ""}')


def test_a_file_that_was_corrected_is_read_again(tmp_path, root):
    """What an earlier run noted is no reason to train on old captions."""
    given(tmp_path, root, "c.json", json.dumps(ROWS))
    before = (tmp_path / "made" / "captions.jsonl").read_bytes()
    assert given(tmp_path, root, "c.json", json.dumps(ROWS)) == ROWS
    assert (tmp_path / "made" / "captions.jsonl").read_bytes() == before
    corrected = ROWS | {"01.png": "corrected", "02.png": ""}
    expected = {n: t for n, t in corrected.items() if t}
    assert given(tmp_path, root, "c.json", json.dumps(corrected)) == expected
    assert given(tmp_path, root, "d.json", json.dumps(corrected), "seed=7") == expected
    assert given(tmp_path, root, "c.json", json.dumps(ROWS)) == ROWS


def test_unknown_images(tmp_path, root):
    content = json.dumps(ROWS | {"6.png": "of nothing"})
    message = r"c.json: 6.png: image '6.png' is not among the 6 images; .*caption.unknown=ignore"
    with pytest.raises(UserError, match=message):
        given(tmp_path, root, "c.json", content)
    assert given(tmp_path, root, "c.json", content, "caption.unknown=ignore") == ROWS
    with pytest.raises(UserError, match=r"caption.unknown='skip' is unknown; there are: error, ig"):
        given(tmp_path, root, "c.json", content, "caption.unknown=skip")
    # An image that cannot be read is not unknown.
    (root / "04.png").write_bytes(b"x")
    found = given(tmp_path, root, "c.json", json.dumps(ROWS), "data.on_missing=drop")
    assert sorted(found) == ["00.png", "01.png", "02.png", "03.png"]


@pytest.mark.parametrize(("policy", "text"), [("first", "caption, 1"), ("last", "second")])
def test_second_captions(tmp_path, root, policy, text):
    rows = [*ROWS.items(), ("01", "second"), ("02.png", ROWS["02.png"])]
    content = "".join(json.dumps({"image": n, "caption": t}) + "\n" for n, t in rows)
    message = r"c.jsonl:6: image '01.png' has the caption 'caption, 1' in .*c.jsonl:2, and 'second'"
    with pytest.raises(UserError, match=message):
        given(tmp_path, root, "c.jsonl", content)
    change = f"caption.duplicates={policy}"
    assert given(tmp_path, root, "c.jsonl", content, change) == ROWS | {"01.png": text}
    with pytest.raises(
        UserError, match=r"caption.duplicates='all' is unknown; there are: error, f"
    ):
        given(tmp_path, root, "c.jsonl", content, "caption.duplicates=all")


def test_ambiguous_and_missing_files(tmp_path, root):
    Image.fromarray(pictures.pixels(5)).save(root / "01.jpg")
    with pytest.raises(UserError, match=r"image '01' may be 01.jpg or 01.png; write the suffix"):
        given(tmp_path, root, "c.json", '{"01": "x"}')
    with pytest.raises(UserError, match=r"caption.file is empty; captioner texts needs"):
        captions(tmp_path / "made", root, "caption.captioner=texts")
    section = pictures.config(tmp_path, root).rewrite
    with pytest.raises(UserError, match="looks captions up; it cannot rewrite texts"):
        texts.Captioner.from_config(section, 0, [])


def test_lists_bring_their_captions(tmp_path):
    members = {}
    for i in range(4):
        Image.fromarray(pictures.pixels(i % 3)).save(tmp_path / "p.png")
        members |= {f"{i}.png": (tmp_path / "p.png").read_bytes(), f"{i}.txt": b"text %d" % i}
    shard(tmp_path / "0.tar", members)
    sets = (f"data.lists={tmp_path}/0.tar",)
    assert captions(tmp_path / "made", "", *sets, recipe="list") == {
        str(i): f"text {i}" for i in range(3)
    }
    counting = pictures.Counting(tmp_path)  # or a model looks at what is in the shards
    found = captions(tmp_path / "other", "", *sets, *counting.sets, recipe="list")
    assert found["2"] == "a picture of 2" and len(counting.asked()) == 3


def test_records_of_images_that_are_gone_are_kept(tmp_path):
    with journal.Journal(tmp_path / "w.jsonl") as kept:
        kept.add({"image": "gone", "text": "x", "prompt": "other"})
    assert write(tmp_path, Scripted(Reply("a", "ay"), Reply("b", "bee"))).new == 2
    assert [r["image"] for r in pictures.lines(tmp_path / "w.jsonl")] == ["gone", "a", "b"]
