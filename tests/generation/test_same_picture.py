# SPDX-License-Identifier: Apache-2.0
"""Captioner, comparison and encoder see the same picture, and a work folder goes on as it began."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from cir_jax.data.pixels import NATURAL, RELEASED, open_image
from cir_jax.generation import image_hashes, steps
from cir_jax.servers import pictures as sent_pictures
from tests.generation import pictures


@pytest.fixture
def odd(tmp_path):
    """name -> file: lying on its side, 16 bits, transparent, plain."""
    exif, drawn = Image.Exif(), Image.fromarray(pictures.pixels(0))
    exif[0x112] = 6
    drawn.save(tmp_path / "lying.png", exif=exif)
    Image.fromarray((np.asarray(drawn.convert("L"), np.uint16) * 257).astype(np.uint16)).save(
        tmp_path / "deep.png"
    )
    clear = drawn.copy()
    clear.putalpha(drawn.convert("L"))
    clear.save(tmp_path / "clear.png")
    drawn.save(tmp_path / "plain.png")
    return {file.name: str(file) for file in sorted(tmp_path.iterdir())}


def test_local_model_and_server_see_what_the_encoder_sees(odd):
    for name, file in odd.items():
        encoder = np.asarray(open_image(file, NATURAL))
        np.testing.assert_array_equal(sent_pictures.small_image(file, 0, NATURAL), encoder)
        url = sent_pictures.data_url(file, 0, NATURAL)
        content = base64.b64decode(url.partition(",")[2])
        with Image.open(io.BytesIO(content)) as sent:
            np.testing.assert_array_equal(sent.convert("RGB"), encoder, err_msg=name)
        as_it_is = content == open(file, "rb").read()
        assert as_it_is == (name == "plain.png"), name


def test_hashes_of_another_loading_are_not_used(odd, tmp_path):
    journal = tmp_path / "hashes.jsonl"
    first = image_hashes.hash_images(odd, journal)
    assert image_hashes.was_released(journal)
    second = image_hashes.hash_images(odd, journal, loading=NATURAL)
    differ = {name for name in odd if first.pixels[name] != second.pixels[name]}
    assert differ == {"lying.png", "deep.png", "clear.png"}
    size = journal.stat().st_size
    for loading, found in ((NATURAL, second), (RELEASED, first)):
        assert image_hashes.hash_images(odd, journal, loading=loading).pixels == found.pixels
    assert journal.stat().st_size == size  # nothing was hashed again


@pytest.mark.parametrize("begun", [None, "released", "natural"])
def test_a_work_folder_goes_on_as_it_began(tmp_path, capsys, begun):
    config = pictures.config(tmp_path, "unused")
    assert config.data.name == "folder"
    if begun:
        said = {} if begun == "released" else {"loading": NATURAL.fingerprint()}
        (tmp_path / "hashes.jsonl").write_text(json.dumps({"image": "a", **said}) + "\n")
    assert steps.resolve(config).data.loading == (begun or "natural")
    assert ("goes on with data.loading=released" in capsys.readouterr().out) == (
        begun == "released"
    )


def test_captions_of_pictures_that_are_opened_otherwise_are_asked_for_again(tmp_path, capsys):
    """Where pixels are compared they tell it, else what is noted of the loading: with a file of
    equal images nothing is decoded before."""
    root, counting = pictures.folder(tmp_path / "in", 4), pictures.Counting(tmp_path)
    optimized = tmp_path / "optimized_images.json"
    names = [f"0{i}.png" for i in range(4)]
    optimized.write_text(json.dumps([names, names, {n: i for i, n in enumerate(names)}]))
    sets = (*counting.sets, f"dedupe.optimized={optimized}")

    def asked(loading):
        assert len(pictures.captions(tmp_path / "made", root, *sets, f"data.loading={loading}")) > 3
        return [key for key, _, _ in counting.asked()]

    assert asked("released") == names and asked("released") == []
    written = pictures.lines(tmp_path / "made" / "captions.jsonl")
    assert all({"pixels", "loading"}.isdisjoint(record) for record in written)  # as published
    capsys.readouterr()
    assert asked("natural") == names and asked("natural") == []
    said = "4 texts of {} are of pictures that were opened otherwise".format(
        tmp_path / "made" / "captions.jsonl"
    )
    assert said in " ".join("".join(capsys.readouterr()).split())
    records = pictures.lines(tmp_path / "made" / "captions.jsonl")
    assert records[:4] == written and {r["loading"] for r in records[4:]} == {NATURAL.fingerprint()}
    assert asked("released") == []  # both are there


@pytest.mark.parametrize(
    ("record", "loading"),
    [
        ({}, "released"),
        ({"pixels": "ab"}, "natural"),
        ({"loading": NATURAL.fingerprint()}, "natural"),
    ],
)
def test_without_hashes_captions_say_how_a_folder_began(tmp_path, record, loading):
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a", "text": "x", **record}))
    with (tmp_path / "captions.jsonl").open("a") as file:
        file.write("\n")
    assert steps.resolve(pictures.config(tmp_path, "unused")).data.loading == loading
