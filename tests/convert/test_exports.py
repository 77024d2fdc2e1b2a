# SPDX-License-Identifier: Apache-2.0
"""Exports of two trees, into folders that hold something, and of models that are files."""

import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cir_jax.convert import exporting, identify, importing, sources
from cir_jax.errors import UserError
from cir_jax.models import clip_sum
from tests.convert import published
from tests.convert.published import VIT


def test_images_are_of_the_index_and_texts_of_the_query(tmp_path):
    functions = published.functions()
    index = {p: np.asarray(x) for p, x in functions.init(0).items()}
    query = {p: x + 1 for p, x in index.items()}
    exporting.write(tmp_path / "a.pt", functions, index, query, layout="spn")
    found = importing.read(tmp_path / "a.pt", functions)
    for path, got in found.query.items():
        want = index if path.startswith("visual/") else query
        np.testing.assert_array_equal(got, want[path])


def test_no_single_model_is_two_trees_that_share_a_leaf():
    functions = types.SimpleNamespace(
        index_paths=["a", "b"], query_paths=["b", "c"], abstract="abc"
    )
    one = {path: np.zeros(2) for path in "abc"}
    single, other = set("abc"), one | {"b": np.ones(2)}
    joined = exporting._tree(functions, one, one | {"c": np.ones(2)}, "retrieval", single)
    assert joined["c"].all()
    with pytest.raises(UserError, match=r"index and query both read b \(1 in all\), and differ"):
        exporting._tree(functions, one, other, "retrieval", single)
    # A layout that holds both, or neither, has nothing to decide.
    assert exporting._tree(functions, one, other, "retrieval", set("ac"))["b"].all()


@pytest.mark.parametrize("layout", ["safetensors", "huggingface"])
def test_both_trees_are_written_in_the_type_asked_for(layout, tmp_path):
    functions = published.functions()
    index = {p: np.asarray(x) for p, x in functions.init(0).items()}
    query = {p: x + 1 if p.startswith("text/") else x for p, x in index.items()}
    record = {}
    for dtype in ("float16", "source"):  # the second: the types that the first has written
        folder = tmp_path / dtype
        target = folder if layout == "huggingface" else folder / "x.safetensors"
        exporting.write(target, functions, index, query, layout=layout, dtype=dtype, record=record)
        record = importing.read(target, functions).record
        for file in folder.rglob("*.safetensors"):
            assert {t.dtype for t in safetensors.torch.load_file(file).values()} == {torch.float16}


def test_a_folder_never_holds_two_models(tmp_path):
    functions = published.functions()
    index = {p: np.asarray(x) for p, x in functions.init(0).items()}
    query = index | {"text/proj": index["text/proj"] + 1}
    exporting.write(tmp_path, functions, index, query, layout="huggingface")
    exporting.write(tmp_path, functions, index, query, layout="huggingface")
    before = importing.read(tmp_path, functions)
    with pytest.raises(UserError, match=r"holds index_text of an earlier export or another"):
        exporting.write(tmp_path, functions, query, query, layout="huggingface")
    with pytest.raises(UserError, match=r"holds model.safetensors, index_text of an earlier"):
        exporting.write(tmp_path, functions, query, query, layout="open_clip")
    after = importing.read(tmp_path, functions)
    np.testing.assert_array_equal(after.index["text/proj"], before.index["text/proj"])
    assert not (tmp_path / "open_clip_config.json").exists()


def test_our_own_layout_of_a_model_whose_file_has_moved(tmp_path):
    names = [str(tmp_path / folder / "mine.py") for folder in ("a", "b")]
    for name in names:
        Path(name).parent.mkdir()
        shutil.copy(clip_sum.__file__, name)
    first, second = (published.functions(VIT, name) for name in names)
    params = {p: np.asarray(x) for p, x in first.init(0).items()}
    file = tmp_path / "x.safetensors"
    exporting.write(file, first, params, params, layout="safetensors")
    assert importing.read(file, second).query.keys() == params.keys()
    with pytest.raises(UserError, match=r"is of model.name=.*mine.py, but .* model.name=clip_sum"):
        importing.read(file, published.functions())
    # A file does not say which code is run.
    with pytest.raises(UserError, match=r"is of the model '.*mine.py', .* --model FILE.py"):
        identify.sole_model([sources.open_source(file)])


def test_a_combiner_is_no_file_of_safetensors(tmp_path):
    functions = published.functions(VIT, "clip_combiner")
    params = {p: np.asarray(x) for p, x in functions.init(0).items()}
    with pytest.raises(UserError, match=r"hold tensors only, no 'Combiner'; name it \.pt"):
        exporting.write(tmp_path / "a.safetensors", functions, params, params, layout="combiner")


@pytest.mark.parametrize("key, value", [("tower", 5), ("name", None), ("context", "77")])
def test_metadata_that_are_no_model_section(key, value, tmp_path):
    model = {"name": "clip_sum", "tower": VIT, "context": 0, "image_size": 0} | {key: value}
    metadata = {"cir_jax": json.dumps({"model": model})}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(UserError, match=rf"its metadata are damaged \(ValueError\(.{key}="):
        identify.candidates(sources.open_source(tmp_path / "a.safetensors"))


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    functions, file = published.functions(), tmp_path / "x.safetensors"
    params = {p: np.asarray(x) for p, x in functions.init(0).items()}
    exporting.write(file, functions, params, params, layout="safetensors")
    with safetensors.safe_open(file, "numpy") as written:
        content = json.loads(written.metadata()["cir_jax"])
    assert content["version"] == 1
    metadata = {"cir_jax": json.dumps(content | {"version": 2})}
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, metadata)
    message = r"x.safetensors is of version 2 of its format, and this code reads version 1; update"
    with pytest.raises(UserError, match=message):
        importing.read(file, functions)
