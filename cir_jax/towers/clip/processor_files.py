# SPDX-License-Identifier: Apache-2.0
"""The tokenizer and image processor files of a transformers folder.

A model of ours is fed by our own tokenizer and pixels. So the files of a folder that is read are
checked to say the same as ours, and a folder that is written gets files with which transformers
does the same.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cir_jax.convert import inputs
from cir_jax.convert.config_values import close
from cir_jax.convert.sources import read_json
from cir_jax.convert.transformers_files import PREPROCESSOR, PROCESSOR, image_settings, json_bytes
from cir_jax.data import text_files, tokens
from cir_jax.data.pixels import CLIP, INTERPOLATIONS, Normalisation
from cir_jax.errors import UserError
from cir_jax.files import whole
from cir_jax.towers.clip.sizes import VOCABULARY, ClipSize

VOCABULARY_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
TOKENIZER = (
    *VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
SPECIAL = {"<|startoftext|>": VOCABULARY - 2, "<|endoftext|>": VOCABULARY - 1}
MARKS = {
    "bos_token": "<|startoftext|>",
    **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Capitals, digits, endings, punctuation, letters of more than a byte: what tokenizers differ in.
SAMPLES = (
    "is darker and has, no",
    "A Photo of 3 dogs' toys; they don't match (much)!",
    "naïve café in 2024, 50% off…",
    "  the   one with  unquestionably asymmetrical neckline  ",
    "wow!",
)
_REMEDY = "or take the tokenizer files out of the folder if its weights have CLIP's own vocabulary"


def tokenizer_files(folder: Path, image: int | None = None, own: bool = False) -> list[Path]:
    """The tokenizer and processor files of a folder, checked to be CLIP's.

    Args:
      folder: of a model of transformers.
      image: side of the model's images in pixels; None does not compare it.
      own: its tokenizer is one of its own, which a run keeps by itself: left out.

    Returns:
      Those that are there; [] if there are none, and our own tokenizer is what the weights get.

    Raises:
      UserError: the tokenizer makes other ids than ours, or the pixels are normalised or cropped
        otherwise; the file and the first difference are named.
    """
    known = (*(() if own else TOKENIZER), PREPROCESSOR, PROCESSOR)
    present = [folder / n for n in known if (folder / n).is_file()]
    names = {path.name for path in present}
    if names.intersection(TOKENIZER):
        _check_tokenizer(folder, names)
    for path, settings in image_settings(present):
        wrong = _image_differences(settings, image)
        if wrong:
            raise UserError(
                f"{path} has {'; '.join(wrong)}: other pixels than the model gets here; correct "
                "the file, or take it out of the folder"
            )
    return present


def processor_of(folder: Path) -> inputs.Processor:
    """What the image processor of a folder says, if it has one.

    Raises:
      UserError: it makes pixels that are not possible here.
    """
    paths = [folder / name for name in (PREPROCESSOR, PROCESSOR) if (folder / name).is_file()]
    found = [inputs.of_transformers(said, str(path)) for path, said in image_settings(paths)]
    return found[0] if found else inputs.Processor()


def crops_as_clip(folder: Path) -> bool:
    """Whether the image processor of a folder, if it has one, resizes and crops as CLIP's does."""
    paths = [folder / name for name in (PREPROCESSOR, PROCESSOR) if (folder / name).is_file()]
    steps = ("do_resize", "do_center_crop")
    return not any(x.get(step) is False for _, x in image_settings(paths) for step in steps)


def write_processor(
    folder: Path,
    size: ClipSize,
    context: int,
    taken_over: list[Path],
    normalisation: Normalisation = CLIP,
    interpolation: str = "bicubic",
    own: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Writes tokenizer and image processor files with which transformers does what we do.

    Args:
      folder: of the model that is exported.
      size: of the model.
      context: text positions.
      taken_over: files of the folder that the weights came from, as `tokenizer_files` found them.
        They are copied, except those for images of another side; what is not among them is made
        from our own vocabulary.
      normalisation: of the pixels.
      interpolation: filter of the resize.
      own: name -> content of the files of a tokenizer that is not CLIP's.

    Returns:
      The files written.
    """
    other = {
        path
        for path, settings in image_settings(taken_over)
        if _image_differences(settings, size.vision.image)
    }
    content = {path.name: path.read_bytes() for path in taken_over if path not in other}
    if own:
        content |= own
    elif not any(name in content for name in VOCABULARY_FILES):
        content |= _own_tokenizer(context)
    if not image_settings([path for path in taken_over if path not in other]):
        content[PREPROCESSOR] = _own_image_processor(
            size.vision.image, normalisation, interpolation
        )
    for name, what in content.items():
        with whole(folder / name) as file:
            file.write(what)
    return sorted(folder / name for name in content)


def _check_tokenizer(folder: Path, names: set[str]) -> None:
    fast = "tokenizer.json" in names
    slow = {"vocab.json", "merges.txt"} <= names
    if not fast and not slow:
        have = ", ".join(sorted(names.intersection(TOKENIZER)))
        raise UserError(
            f"{folder} has {have} but no whole vocabulary: tokenizer.json, or vocab.json and "
            "merges.txt; fetch them, or take those files out of the folder"
        )
    _check_words(folder, names)
    if slow:
        _compare(folder / "vocab.json", *_from_vocabulary(folder))
    if fast:
        _compare(folder / "tokenizer.json", *_from_tokenizer(folder / "tokenizer.json"))


def _check_words(folder: Path, names: set[str]) -> None:
    """Refuses words beside the vocabulary, and tokenizers of another kind."""
    for name in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        if name not in names:
            continue
        path, found = folder / name, read_json(folder / name)
        if name == "added_tokens.json":
            _refuse_extra(path, found)
            continue
        kind = found.get("tokenizer_class")
        if kind not in (None, *CLASSES):
            raise UserError(
                f"{path} is of a {kind}, not of a CLIPTokenizer; this project has CLIP's tokenizer "
                f"only; take other weights, {_REMEDY}"
            )
        added = found.get("added_tokens_decoder") or {}
        added = added if isinstance(added, dict) else {"?": added}
        _refuse_extra(path, {str(_word(word)): number for number, word in added.items()})
        marks = {key: _word(found[key]) for key in MARKS if found.get(key)}
        for key, word in marks.items():
            # A word that is made a mark, as "!" for padding, is no longer split as a word.
            if word != MARKS[key]:
                raise UserError(
                    f"{path} has {key}={word!r}, and CLIP's is {MARKS[key]!r}; take other weights, "
                    f"{_REMEDY}"
                )


def _word(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def _refuse_extra(path: Path, words: dict[str, Any]) -> None:
    for word, number in words.items():
        if str(SPECIAL.get(word)) != str(number):  # keys of JSON are text
            raise UserError(
                f"{path} adds the word {word!r} as {number}, which CLIP's vocabulary does not "
                f"treat so; take other weights, {_REMEDY}"
            )


def _from_vocabulary(folder: Path) -> tuple[Any, dict[str, int]]:
    made = _damaged(folder / "vocab.json", lambda: _transformers_tokenizer(folder))
    return made.backend_tokenizer, made.get_vocab()


def _transformers_tokenizer(folder: Path, **options: Any) -> Any:
    """A CLIPTokenizer of vocab.json and merges.txt."""
    from transformers import CLIPTokenizer  # takes seconds, and a folder may have no tokenizer

    # A vocabulary may have a word with a line separator of Unicode: only newlines end a line.
    lines = text_files.read(folder / "merges.txt").split("\n")
    merges: Any = [tuple(x.split()) for x in lines if x and not x.startswith("#version")]
    return CLIPTokenizer(vocab=read_json(folder / "vocab.json"), merges=merges, **options)


def _from_tokenizer(path: Path) -> tuple[Any, dict[str, int]]:
    from tokenizers import Tokenizer

    made = _damaged(path, lambda: Tokenizer.from_file(str(path)))
    made.no_truncation()
    made.no_padding()
    special = {t.content: i for i, t in made.get_added_tokens_decoder().items()}
    _refuse_extra(path, special)
    return made, made.get_vocab()


def _damaged(path: Path, make: Callable[[], Any]) -> Any:
    """make(), or a UserError; the tokenizers library raises plain exceptions."""
    try:
        return make()
    except BaseException as error:
        # A panic of its Rust code is no Exception, and its class has no public name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{path} cannot be read as a tokenizer ({error}); fetch it again, {_REMEDY}"
        ) from None


def _compare(path: Path, theirs: Any, vocabulary: dict[str, int]) -> None:
    for text, want in zip(SAMPLES, tokens.load("clip").encode(SAMPLES), strict=True):
        got = _damaged(path, partial(theirs.encode, text)).ids
        if got != want:
            raise UserError(
                f"{path} is not CLIP's tokenizer: {text!r} becomes {got}, and here {want}; take "
                f"other weights, {_REMEDY}"
            )
    if len(vocabulary) != VOCABULARY:
        raise UserError(
            f"{path} has {len(vocabulary)} entries, not CLIP's {VOCABULARY}; take other weights, "
            f"{_REMEDY}"
        )
    for word, number in _own_bpe().get_vocab().items():
        if vocabulary.get(word) != number:
            raise UserError(
                f"{path} is not CLIP's vocabulary: {word!r} is {vocabulary.get(word)}, and here "
                f"{number}; take other weights, {_REMEDY}"
            )


def _image_differences(settings: dict[str, Any], image: int | None) -> list[str]:
    """What keeps an image processor from making our pixels, apart from mean and deviation."""
    wrong = [
        f"{key}={settings[key]!r}"
        for key in ("do_normalize", "do_rescale")
        if settings.get(key) is False
    ]
    factor = settings.get("rescale_factor")
    if factor is not None and not close(factor, 1 / 255, 1e-6):
        wrong.append(f"rescale_factor={factor!r}")
    if image is None:
        return wrong
    for key in ("size", "crop_size"):
        value = settings.get(key)
        sides = value.values() if isinstance(value, dict) else [value]
        if value is not None and any(side != image for side in sides):
            wrong.append(f"{key}={value!r} where the model has {image} pixels")
    return wrong


def _own_bpe() -> Any:
    return tokens.load("clip").backend


def _own_tokenizer(context: int) -> dict[str, bytes]:
    """Name -> content of the tokenizer files, for old and new versions of transformers."""
    with tempfile.TemporaryDirectory() as made:
        _own_bpe().model.save(made)
        _transformers_tokenizer(Path(made), model_max_length=context).save_pretrained(made)
        content = {path.name: path.read_bytes() for path in sorted(Path(made).iterdir())}
    content["special_tokens_map.json"] = json_bytes(MARKS)  # versions before 5 read it
    return content


def _own_image_processor(image: int, normalisation: Normalisation, interpolation: str) -> bytes:
    return json_bytes(
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": image},
            "resample": int(INTERPOLATIONS[interpolation]),  # Pillow's number
            "do_center_crop": True,
            "crop_size": {"height": image, "width": image},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(normalisation.mean),
            "image_std": list(normalisation.deviation),
        }
    )
