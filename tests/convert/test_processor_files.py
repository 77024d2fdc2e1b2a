# SPDX-License-Identifier: Apache-2.0
"""Tokenizer and image processor files of a folder, against those of transformers."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoTokenizer, CLIPTokenizer

from cir_jax import contract
from cir_jax.data import pixels, tokens
from cir_jax.errors import UserError
from cir_jax.towers.clip import sizes
from cir_jax.towers.clip.processor_files import processor_of, tokenizer_files, write_processor

SIZE = sizes.SIZES["ViT-L/14@336px"]
TEXTS = ["is darker and has, no", "A dog's 3 toys!", "  Ünïcödé 🐶  café…", "a" * 40]
MADE = [
    "merges.txt", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    assert [p.name for p in write_processor(folder, SIZE, 77, [])] == MADE
    return folder


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "model")
    return tmp_path / "model"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", [CLIPTokenizer, AutoTokenizer])
def test_transformers_gives_our_ids_of_what_we_write(written, kind):
    theirs = kind.from_pretrained(written, local_files_only=True)
    assert isinstance(theirs, CLIPTokenizer)
    assert theirs(TEXTS)["input_ids"] == tokens.load("clip").encode(TEXTS)
    assert theirs(TEXTS[0])["input_ids"][1:-1] == [533, 18737, 537, 791, 267, 871]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (49406, 49407, 49407)
    assert (len(theirs), theirs.model_max_length) == (49408, 77)


def test_old_and_new_files_are_one_tokenizer(written, tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(written / name, tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert theirs(TEXTS)["input_ids"] == tokens.load("clip").encode(TEXTS)


def test_the_text_positions_are_the_length_of_a_text(tmp_path):
    write_processor(tmp_path, SIZE, 248, [])
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 248


def test_the_image_processor_makes_the_pixels_of_plain_clip(written):
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    )
    processor = AutoImageProcessor.from_pretrained(written)
    theirs = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = contract.normalize(pixels.Preprocess(336, "none")(picture))
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_written_folder_is_accepted_and_copied(written, tmp_path):
    found = tokenizer_files(written, 336)
    assert sorted(p.name for p in found) == MADE
    out = tmp_path / "exported"
    assert [p.name for p in write_processor(out, SIZE, 77, found)] == MADE
    for path in found:
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_no_files_are_fine(tmp_path):
    assert tokenizer_files(tmp_path) == []


def test_files_for_another_side_are_not_copied(written, tmp_path):
    small = sizes.SIZES["ViT-L/14"]
    write_processor(tmp_path, small, 77, tokenizer_files(written))
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["crop_size"] == {
        "height": 224,
        "width": 224,
    }
    assert (tmp_path / "vocab.json").read_bytes() == (written / "vocab.json").read_bytes()
    assert len(tokenizer_files(tmp_path, 224)) == len(MADE)


def test_what_is_not_among_the_files_is_made(written, tmp_path):
    write_processor(tmp_path, SIZE, 77, [written / "preprocessor_config.json"])
    assert sorted(p.name for p in tokenizer_files(tmp_path, 336)) == MADE


def test_a_processor_config_may_hold_the_image_processor(folder, tmp_path):
    inner = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    path = folder / "processor_config.json"
    path.write_text(json.dumps({"processor_class": "CLIPProcessor", "image_processor": inner}))
    found = tokenizer_files(folder, 336)
    assert path in found
    copied = {p.name for p in write_processor(tmp_path / "out", SIZE, 77, found)}
    assert "processor_config.json" in copied
    assert "preprocessor_config.json" not in copied
    edit(path, lambda c: c["image_processor"].update(image_mean=[0.5, 0.5, 0.5]))
    assert processor_of(folder).model["pixel_mean"] == (0.5, 0.5, 0.5)
    path.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert path in tokenizer_files(folder, 336)


def swapped(first, second, inside=lambda content: content):
    def change(content):
        words = inside(content)
        words[first], words[second] = words[second], words[first]

    return change


SEEN = ("has</w>", "is</w>")  # by the sample texts


TOKENIZERS = {
    "a word of a sample": ("vocab.json", swapped(*SEEN), r"vocab.json.*'is darker.*791.*533.*here"),
    "in tokenizer.json": (
        "tokenizer.json",
        swapped(*SEEN, inside=lambda content: content["model"]["vocab"]),
        r"tokenizer.json.*'is darker and has, no'",
    ),
    "an unseen word": (
        "vocab.json",
        swapped("light</w>", "dark</w>"),
        r"'(dark|light)</w>' is \d+, and here",
    ),
    "a word too many": (
        "vocab.json",
        lambda c: c.update({"<fashion>": 49408}),
        "49409 entries, not",
    ),
    "a word added": (
        "added_tokens.json",
        {"<fashion>": 49408},
        r"added_tokens.json adds the word '<fashion>' as 49408.*take the tokenizer files out",
    ),
    "a word added in the config": (
        "tokenizer_config.json",
        lambda c: c.update(added_tokens_decoder={"0": {"content": "!", "special": True}}),
        "tokenizer_config.json adds the word '!' as 0",
    ),
    "a word that pads": (
        "special_tokens_map.json",
        lambda c: c.update(pad_token={"content": "!"}),
        r"special_tokens_map.json has pad_token='!', and CLIP's is '<\|endoftext\|>'",
    ),
    "another class": (
        "tokenizer_config.json",
        lambda c: c.update(tokenizer_class="BertTokenizer"),
        "is of a BertTokenizer, not of a CLIPTokenizer",
    ),
    "no JSON": ("tokenizer_config.json", "{", "tokenizer_config.json is no JSON"),
    "no object": ("tokenizer_config.json", [], "holds a list, not an object"),
    "a damaged file": ("tokenizer.json", "{}", "tokenizer.json cannot be read as a tokenizer"),
    "a damaged vocabulary": ("merges.txt", "a b c\n", "cannot be read as a tokenizer"),
}


@pytest.mark.parametrize(("name", "change", "match"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_another_tokenizer_is_refused(folder, name, change, match):
    if callable(change):
        edit(folder / name, change)
    else:
        (folder / name).write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(UserError, match=match):
        tokenizer_files(folder)


def test_added_words_in_tokenizer_json_are_refused(folder):
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.add_tokens(["<fashion>"])
    theirs.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer.json adds the word '<fashion>' as 49408"):
        tokenizer_files(folder)


def test_half_a_vocabulary_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"vocab.json but no whole vocabulary"):
        tokenizer_files(folder)


def test_the_two_marks_may_be_listed_and_padding_set(folder):
    marks = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "added_tokens.json").write_text(json.dumps(marks))
    decoder = {str(i): {"content": w, "special": True} for w, i in marks.items()}
    edit(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder=decoder))
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.enable_truncation(5)
    theirs.enable_padding(length=77)
    theirs.save(str(folder / "tokenizer.json"))
    assert len(tokenizer_files(folder)) == len(MADE) + 1


IMAGES = {
    "size": ({"size": {"shortest_edge": 256}}, r"size=\{'shortest_edge': 256\}.* 336 pixels"),
    "crop": ({"crop_size": 224}, "crop_size=224 where the model has 336 pixels"),
    "word": ({"rescale_factor": "1/255"}, "rescale_factor='1/255'"),
    "raw": ({"do_normalize": False}, "do_normalize=False: other pixels"),
    "bytes": ({"do_rescale": False}, "do_rescale=False"),
    "range": ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.0078"),
}


@pytest.mark.parametrize(("change", "match"), IMAGES.values(), ids=IMAGES)
def test_other_pixels_are_refused(folder, change, match):
    edit(folder / "preprocessor_config.json", lambda c: c.update(change))
    with pytest.raises(UserError, match=match):
        tokenizer_files(folder, 336)


SAID = {
    "no list": ({"image_mean": 0.5}, "pixel_mean of 0.5; three numbers"),
    "lanczos": ({"resample": 1}, "resample=1, and .*bicubic"),
    "aliased": ({"antialias": False}, "antialias=False"),
}


@pytest.mark.parametrize(("change", "match"), SAID.values(), ids=SAID)
def test_pixels_that_no_config_says_are_refused(folder, change, match):
    edit(folder / "preprocessor_config.json", lambda c: c.update(change))
    with pytest.raises(UserError, match=match):
        processor_of(folder)


def test_another_normalisation_and_filter_come_in_and_go_out_again(folder, tmp_path):
    said = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.5] * 3, "resample": 2}
    edit(folder / "preprocessor_config.json", lambda c: c.update(said))
    assert processor_of(folder).model == {
        "pixel_mean": (0.485, 0.456, 0.406), "pixel_deviation": (0.5,) * 3,
        "interpolation": "bilinear",
    }  # fmt: skip
    pixels_of = pixels.Normalisation((0.485, 0.456, 0.406), (0.5,) * 3)
    write_processor(tmp_path / "out", SIZE, 77, [], pixels_of, "bilinear")
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert {key: written[key] for key in said} == said


def test_rounded_values_and_old_spellings_of_the_same_pixels_are_accepted(folder):
    # As transformers 4.2x wrote them.
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": 336,
                "size": 336,
                "do_center_crop": True,
                "do_normalize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": [0.4815, 0.4578, 0.4082],
                "image_std": [0.2686, 0.2613, 0.2758],
                "resample": 3,
            }
        )
    )
    assert len(tokenizer_files(folder, 336)) == len(MADE)


@pytest.mark.parametrize("added", [[1], {"5": ["a"]}, 7])
def test_added_words_in_a_form_of_their_own(folder, added):
    edit(folder / "tokenizer_config.json", lambda x: x.update(added_tokens_decoder=added))
    with pytest.raises(UserError, match=r"tokenizer_config.json adds the word"):
        tokenizer_files(folder)
