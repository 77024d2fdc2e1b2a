# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: kept with what is trained and exported, compared by who uses it."""

import base64
from dataclasses import replace

import numpy as np
import pytest

import cir_jax
from cir_jax import contract, main, weights
from cir_jax.convert import native
from cir_jax.convert.containers import safe_tensors
from cir_jax.data.pixels import Loading, Preprocess, open_image
from cir_jax.errors import UserError
from cir_jax.retrieval import golden
from cir_jax.training import train
from tests import runs
from tests.convert import published


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a tiny model, the file that it saved itself as)."""
    folder = tmp_path_factory.mktemp("golden")
    model = cir_jax.load(published.write("spn", folder, published.state()))
    return model, model.save(folder / "own.safetensors")


def call(*arguments):
    return main.main([str(x) for x in arguments])


def test_the_pictures_tell_paddings_and_loadings_apart():
    """Each way to make squares gives other means than every other."""
    ways = [
        Preprocess(32, pad, loading=Loading(name, background))
        for pad in ("target", "square", "none")
        for name, background in (("released", "white"), ("natural", "white"), ("natural", "black"))
    ]
    means = [golden._means(np.stack([way(p) for p in golden.inputs()])) for way in ways]
    for i, one in enumerate(means):
        for other in means[:i]:
            assert np.abs(one - other).max() > 10
    assert means[0].shape == (4, 8, 8, 3) and means[0].dtype == np.float32


def test_the_pictures_are_the_same_everywhere():
    """Sums worked out once: another formula would make all void that is kept."""
    opened = [np.asarray(open_image(p, Loading("natural"))) for p in golden.inputs()]
    assert [x.shape for x in opened] == [(48, 80, 3), (96, 40, 3), (56, 56, 3), (64, 36, 3)]
    sums = [int(x.astype(np.int64).sum()) for x in opened]
    assert sums == SUMS


SUMS = [1420458, 2188350, 1154484, 756270]


def test_means_of_fields():
    squares = np.zeros((1, 16, 16, 3), np.uint8)
    squares[0, 2:4, 0:2, 1] = [[1, 2], [3, 4]]
    means = golden._means(squares)
    assert means[0, 1, 0].tolist() == [0, 2.5, 0] and means.sum() == 2.5


def test_targets_and_queries_are_what_the_model_gives(saved):
    model, _ = saved
    found = model.golden()
    pictures = [open_image(p, Loading(model.loading)) for p in golden.inputs()]
    np.testing.assert_allclose(found.targets, model.encode_images(pictures), atol=2e-6)
    queries = model.encode_queries(pictures, golden.TEXTS)
    np.testing.assert_allclose(found.queries, queries, atol=2e-6)
    assert (found.tokens[0] >= 0).sum() == 2 and found.about["platform"] == "cpu"


def test_the_same_model_agrees_and_bytes_come_back(saved):
    model, place = saved
    kept = golden.kept_with(place)
    assert golden.differences(kept, model.golden()) == []
    again = golden.decoded(kept.encoded(), "here")
    assert again.about == kept.about
    for name in ("pixels", "tokens", "targets", "queries"):
        np.testing.assert_array_equal(getattr(again, name), getattr(kept, name))


def test_what_differs_is_named(saved):
    kept = saved[0].golden()
    turned = replace(kept, pixels=kept.pixels + 2)
    assert golden.differences(kept, turned)[0].startswith("pixels (made by pad=target 1.25 size=32")
    longer = replace(kept, tokens=np.pad(kept.tokens, ((0, 0), (0, 1))))
    assert golden.differences(kept, longer) == ["tokens (another tokenizer or context)"]
    far = kept.targets.copy()
    far[1, 0, 3] += 1e-3
    assert "targets (image side; a value by 0.001, 1e-04" in golden.differences(
        kept, replace(kept, targets=far)
    )[0]  # fmt: skip
    broken = replace(kept, queries=np.full_like(kept.queries, np.nan))
    assert golden.differences(kept, broken)[0].startswith("queries (query side; a value by nan")
    wide = replace(kept, queries=np.zeros((4, 3), np.float32))
    assert golden.differences(kept, wide)[0].startswith("queries ([32] values then, [3] now)")


def test_tolerances():
    cpu = {"dtype": "float32", "parameters": "float32", "platform": "cpu"}
    assert golden.tolerance(cpu, cpu) == 1e-4
    assert golden.tolerance(cpu, cpu | {"parameters": "float16"}) == 5e-3
    assert golden.tolerance(cpu, cpu | {"platform": "tpu"}) == 2e-2
    assert golden.tolerance(cpu | {"dtype": "bfloat16"}, cpu) == 3e-2
    assert golden.coarsest(["float32", "float16", "int64"]) == "float16"
    assert golden.coarsest([]) == "float32"


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_vectors_of_rounded_parameters_are_within_their_tolerance(saved, tmp_path, dtype):
    place = tmp_path / "rounded.safetensors"
    assert call("export", saved[1], place, "--format", "safetensors", "--dtype", dtype) == 0
    assert golden.kept_with(place).about["parameters"] == dtype
    now = cir_jax.load(place).golden()
    golden.check_places([place], "best", now)
    assert np.abs(now.targets - saved[0].golden().targets).max() > 1e-5  # they are rounded


def test_another_model_is_refused(saved, tmp_path):
    """A file whose parameters were changed behind its vectors."""
    tensors, metadata = safe_tensors.read(saved[1])
    other = cir_jax.load(published.write("spn", tmp_path, published.state(seed=1)))
    with pytest.raises(UserError, match=r"own\.safetensors.*differ targets \(image side"):
        golden.check_places([saved[1]], "best", other.golden())
    assert native.GOLDEN in metadata and tensors


def test_damaged_vectors_are_named(saved, tmp_path):
    kept = saved[0].golden().encoded()
    place = tmp_path / "a.pt"
    for content in (b"", kept[:100], kept[:-4], b"x" * 64, kept.replace(b'"pixels"', b'"pixel_"')):
        golden.beside(place).write_bytes(content)
        with pytest.raises(UserError, match=r"a\.golden\.safetensors: its golden vectors cannot"):
            golden.kept_with(place)
    newer = kept.replace(rb"\"version\": 1", rb"\"version\": 9")
    assert newer != kept
    golden.beside(place).write_bytes(newer)
    with pytest.raises(UserError, match="version 9"):
        golden.kept_with(place)


def test_damaged_vectors_in_our_own_file(saved, tmp_path):
    tensors, metadata = safe_tensors.read(saved[1])
    for text in ("?", base64.b64encode(b"no").decode()):
        with open(tmp_path / "own.safetensors", "wb") as file:
            safe_tensors.write(file, tensors, metadata | {native.GOLDEN: text})
        with pytest.raises(UserError, match="golden vectors cannot be read"):
            golden.kept_with(tmp_path / "own.safetensors")


def test_a_run_keeps_those_of_its_best_and_its_last_step(tmp_path, capsys):
    root = runs.write_fashioniq(tmp_path / "data")
    changes = ("eval.every=1", "epochs=3", "optim.learning_rate=0.05")
    tiny = runs.tiny(tmp_path / "run", root, *changes)
    results = train.train(tiny)
    best = max(results["history"], key=lambda entry: entry["score"])["step"]
    names = {file.name for file in (tmp_path / "run" / "golden").iterdir()}
    assert names == {f"{best}.safetensors", f"{results['step']}.safetensors"}
    for which in ("best", "last"):
        kept = golden.kept_with(tmp_path / "run", which)
        loaded_config = weights.config_of(tmp_path / "run", which)
        functions = contract.build(loaded_config.model)
        loaded = weights.load(str(tmp_path / "run"), functions, which)
        now = golden.of_weights(loaded_config, functions, loaded.index, loaded.query)
        assert golden.differences(kept, now) == []
    train.train(tiny)  # finished: nothing is made again
    (tmp_path / "run" / "golden" / f"{best}.safetensors").unlink()
    out = tmp_path / "out.safetensors"
    capsys.readouterr()
    trusted = ("--trust-code", "--format", "safetensors")
    assert call("export", tmp_path / "run", out, *trusted) == 0
    assert "was made before runs had golden vectors" in capsys.readouterr().out
    assert golden.kept_with(out) is not None


def test_import_compares_and_keeps(saved, tmp_path, capsys):
    assert call("import", saved[1], tmp_path / "run") == 0
    assert golden.kept_with(tmp_path / "run") is not None
    capsys.readouterr()
    changed = ("--set", "data.pad=none")
    assert call("import", saved[1], tmp_path / "other", *changed) == 0
    assert "is used with data.pad=none, and gives other vectors" in capsys.readouterr().out
    kept = golden.kept_with(tmp_path / "other")
    assert kept.about["inputs"].startswith("pad=none")
    with pytest.raises(UserError, match="pixels"):
        golden.check(golden.kept_with(tmp_path / "run"), kept, "run")
