# SPDX-License-Identifier: Apache-2.0
"""A folder of transformers' BlipForImageTextRetrieval: config.json, tokenizer, image processor.

transformers' published configs have an epsilon of 1e-5 in the norms of the image side, where
Salesforce trained with 1e-6. We compute with 1e-6 and write it; both are read.
"""

import tempfile
from pathlib import Path
from typing import Any

from cir_jax.convert import remote_code
from cir_jax.convert.config_values import check_normalisation, square_side, whole_number
from cir_jax.convert.sources import read_json
from cir_jax.convert.transformers_files import completed, json_bytes
from cir_jax.data import text_files, tokens, wordpiece
from cir_jax.data.pixels import IMAGE_MEAN, IMAGE_STD
from cir_jax.errors import UserError
from cir_jax.towers import bert, image_transformer
from cir_jax.towers.blip.sizes import VOCABULARY, BlipSize, check, normal_form
from cir_jax.towers.blip.weight_rules import check_vocabulary
from cir_jax.towers.clip.sizes import TextSize, VisionTransformerSize

CLASS = "BlipForImageTextRetrieval"
EPSILONS = (image_transformer.EPSILON, 1e-5)
MARKS = ("[DEC]", "[ENC]")  # behind BERT's words
SAMPLES = (
    "is darker and has, no",
    "A Photo of 3 dogs' toys; they don't match (much)!",
    "naïve café in 2024, 50% off…",
)


def size_of(config: dict[str, Any], where: Path) -> tuple[BlipSize, int]:
    """What a config.json says: (size in its normal form, text positions).

    Args:
      config: the JSON.
      where: file or folder it is from, for messages.

    Raises:
      UserError: it is of another kind of model, or of a BLIP that our encoders cannot be.
    """
    name = f"{where}: config.json"
    remote_code.check(config, name, CLASS)
    full = _complete(config, name)
    vision, text = full.vision_config, full.text_config
    _check_function(vision, text, name)
    check_vocabulary(text.vocab_size, name)

    def transformer(side: Any, part: str) -> dict[str, int]:
        keys = {"width": "hidden_size", "layers": "num_hidden_layers",
                "heads": "num_attention_heads", "mlp": "intermediate_size"}  # fmt: skip
        return {k: whole_number(getattr(side, v), f"{part}.{v}", name) for k, v in keys.items()}

    image = square_side(vision.image_size, "vision_config.image_size", name)
    patch = square_side(vision.patch_size, "vision_config.patch_size", name)
    size = BlipSize(
        VisionTransformerSize(image=image, patch=patch, **transformer(vision, "vision_config")),
        TextSize(**transformer(text, "text_config")),
        whole_number(full.image_text_hidden_size, "image_text_hidden_size", name),
    )
    check(size, name)
    positions = text.max_position_embeddings
    return normal_form(size), whole_number(positions, "text_config.max_position_embeddings", name)


def config_of(size: BlipSize, context: int) -> dict[str, Any]:
    """config.json of a BlipForImageTextRetrieval of this size, as transformers writes it.

    Args:
      size: of both encoders.
      context: text positions.
    """
    from transformers import BlipConfig  # takes seconds, and other formats do without

    def transformer(part: VisionTransformerSize | TextSize, epsilon: float) -> dict[str, Any]:
        return {
            "hidden_size": part.width,
            "intermediate_size": part.mlp or 4 * part.width,
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.heads,
            "layer_norm_eps": epsilon,
            "hidden_act": "gelu",
        }

    vision, text = size.vision, size.text
    config = BlipConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "encoder_hidden_size": vision.width,
            "max_position_embeddings": context,
            **transformer(text, bert.EPSILON),
        },
        vision_config={
            "image_size": vision.image,
            "patch_size": vision.patch,
            **transformer(vision, image_transformer.EPSILON),
        },
        image_text_hidden_size=size.embedding,
        architectures=[CLASS],
        dtype="float32",
    )
    return config.to_diff_dict()


def check_files(folder: Path) -> None:
    """Checks tokenizer and image processor of a folder, where it has them, against ours.

    Raises:
      UserError: the words are others, or the pixels are normalised otherwise.
    """
    if (folder / "vocab.txt").is_file():
        words = text_files.read(folder / "vocab.txt").removesuffix("\n").split("\n")
        if tuple(words[: wordpiece.WORDS]) != wordpiece.words():
            raise UserError(_other(folder / "vocab.txt", "its words are not bert-base-uncased's"))
    if (folder / "tokenizer.json").is_file():
        _check_tokenizer(folder / "tokenizer.json")
    path = folder / "preprocessor_config.json"
    if path.is_file():
        found = read_json(path)
        check_normalisation(found.get("image_mean"), found.get("image_std"), str(path))
        off = [key for key in ("do_normalize", "do_rescale") if found.get(key) is False]
        if off:
            raise UserError(
                f"{path} has {off[0]}=False: other pixels than the model gets here; correct the "
                "file, or take it out of the folder"
            )


def processor_files(size: BlipSize, context: int) -> dict[str, bytes]:
    """Name -> content of files with which transformers makes our tokens; images become squares.

    Its classification mark is [ENC], as BLIP's code has it, so that a text becomes what we make of
    it.
    """
    from transformers import BertTokenizer

    vocabulary = {word: i for i, word in enumerate((*wordpiece.words(), *MARKS))}
    made = BertTokenizer(
        vocab=vocabulary, cls_token="[ENC]", bos_token="[DEC]", model_max_length=context
    )
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        content = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    # Versions of transformers before 5 read the words alone.
    content["vocab.txt"] = "".join(f"{word}\n" for word in vocabulary).encode()
    side = size.vision.image
    content["preprocessor_config.json"] = json_bytes(
        {
            "image_processor_type": "BlipImageProcessor",
            "processor_class": "BlipProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 3,  # Pillow's number of bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
        }
    )
    return content


def _complete(config: dict[str, Any], name: str) -> Any:
    """The BlipConfig with every default of transformers."""
    from transformers import BlipConfig

    kind, built = config.get("model_type"), config.get("architectures")
    if kind != "blip" or (built and CLASS not in built):
        raise UserError(
            f"{name} has model_type={kind!r} and architectures={built!r}; a BLIP for retrieval is "
            f"needed, as transformers' {CLASS} saves it"
        )
    return completed(config, name, BlipConfig.from_dict)


def _check_function(vision: Any, text: Any, name: str) -> None:
    """Raises UserError for every key that makes another function of the same shapes."""
    wrong = []
    for part, side, epsilons in (
        ("vision_config", vision, EPSILONS), ("text_config", text, (bert.EPSILON,)),
    ):  # fmt: skip
        if side.hidden_act != "gelu":
            wrong.append(f"{part}.hidden_act={side.hidden_act!r} (BLIP's is 'gelu')")
        if side.layer_norm_eps not in epsilons:
            known = " or ".join(map(str, epsilons))
            wrong.append(f"{part}.layer_norm_eps={side.layer_norm_eps!r} (it is {known})")
    if wrong:
        raise UserError(
            f"{name} is of a BLIP that this project cannot be: {'; '.join(wrong)}. Take other "
            "weights, or correct the config if it is not what the weights were trained with"
        )


def _check_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        theirs = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain ones
        raise UserError(_other(path, f"it cannot be read ({error})")) from None
    theirs.no_truncation()
    theirs.no_padding()
    for text, want in zip(SAMPLES, tokens.load("bert_enc").encode(SAMPLES), strict=True):
        got = theirs.encode(text, add_special_tokens=False).ids
        if got != want[1:-1]:
            raise UserError(_other(path, f"{text!r} becomes {got}, and here {want[1:-1]}"))


def _other(path: Path, why: str) -> str:
    return (
        f"{path} is not BLIP's tokenizer: {why}; take other weights, or take the tokenizer files "
        "out of the folder if its weights have BLIP's own words"
    )
