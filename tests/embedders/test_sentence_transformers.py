# SPDX-License-Identifier: Apache-2.0
"""Our exports load in sentence-transformers, and its folders are models here: the same vectors."""

import json

import numpy as np
import pytest
from PIL import Image

import cir_jax
from cir_jax import config, contract
from cir_jax.convert import exporting
from cir_jax.data.pixels import NATURAL
from cir_jax.embedders.inputs import Inputs
from cir_jax.errors import ServerError
from cir_jax.retrieval import load
from tests.embedders.colours import section

TEXT = "but with Blue stripes, 2 of them"


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(exported folder, a picture that is cropped, file of it, our model)."""
    folder = tmp_path_factory.mktemp("exported")
    loaded = config.load("clip_sum:emoji")
    functions = contract.build(loaded.model)
    rng = np.random.default_rng(0)
    params = {
        path: rng.normal(0, 0.1, x.shape).astype(np.float32)
        for path, x in functions.abstract.items()
    }
    options = {"layout": "huggingface", "data": loaded.data.to_dict()}
    exporting.write(folder / "clip", functions, params, params, **options)
    noise = rng.integers(0, 255, (97, 130, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    return folder / "clip", str(folder / "a.png"), cir_jax.load(folder / "clip")


def test_an_exported_folder_gives_the_same_vectors(exported):
    from sentence_transformers import SentenceTransformer

    folder, file, ours = exported
    model = SentenceTransformer(str(folder), local_files_only=True, device="cpu")
    image, text = model.encode([Image.open(file)]), model.encode([TEXT])
    assert json.loads((folder / "composing.json").read_text())["query"] == (
        "unit(encode(image) + encode(text))"
    )
    # Both resize in 8 bits, so that a value in a few hundred may be one level apart.
    np.testing.assert_allclose(unit(image), ours.encode_images([file])[:, 0], atol=2e-4)
    query = ours.encode_queries([file], [TEXT])
    np.testing.assert_allclose(unit(image + text), query, atol=2e-4)


def test_a_folder_is_a_model(exported, tmp_path):
    folder, file, ours = exported
    changes = [f"model.tower={folder}", "model.composition=sum", "model.dtype=float32"]
    _, retriever = load.from_weights(config.load("served:folder", changes), "")
    np.testing.assert_allclose(
        retriever.encode_gallery([file]), ours.encode_images([file]), atol=2e-4
    )
    np.testing.assert_allclose(
        retriever.encode_queries([file], [TEXT]), ours.encode_queries([file], [TEXT]), atol=2e-4
    )
    facts = retriever.functions.embedder.facts()
    assert facts["values"] == {"encoding": "torch", "type": "float32"} and facts["images"] == 1
    assert len(facts["content"]) == 32
    with pytest.raises(ServerError, match=r"has no vectors for image .*composition=sum asks"):
        Inputs(section(tower=str(folder))).tokenizer(NATURAL).encode_with([file], [TEXT])
    # A copy with other weights is another model; one that is none says so.
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ServerError, match=r"cannot be loaded|has no vectors"):
        Inputs(section(tower=str(tmp_path))).width()
