# SPDX-License-Identifier: Apache-2.0
"""Every published layout in and out: the same bytes per tensor, and the same trees."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import CLIPModel, CLIPTextModelWithProjection

from cir_jax.convert import exporting, identify, importing, sources
from cir_jax.errors import UserError
from tests.convert import published
from tests.convert.published import RESNET, VIT

CASES = [
    *((layout, VIT) for layout in ("openai", "clip4cir", "spn", "open_clip", "huggingface")),
    *((layout, RESNET) for layout in ("openai", "clip4cir", "spn", "open_clip")),
]


def tensors_in(place):
    """Name -> torch tensor of a file or folder, by PyTorch's own readers; nesting is joined."""
    if place.is_dir():
        return safetensors.torch.load_file(next(place.glob("*.safetensors")))
    if place.suffix == ".safetensors":
        return safetensors.torch.load_file(place)
    saved = torch.load(place)
    inside = [v for v in saved.values() if isinstance(v, dict)]
    return inside[0] if inside else saved


def same_bytes(got, want):
    assert list(map(str, sorted(got))) == list(map(str, sorted(want)))
    for name, tensor in want.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        raw = [t.contiguous().view(-1).view(torch.uint8) for t in (got[name], tensor)]
        assert torch.equal(*raw), name


def out(layout, folder):
    return folder if layout in ("open_clip", "huggingface") else folder / "out.pt"


@pytest.mark.parametrize("layout, tower", CASES)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "mixed"])
def test_import_then_export_gives_the_same_bytes(layout, tower, half, tmp_path):
    tensors = published.state(tower)
    tensors = published.mixed(tensors) if half else tensors
    place = published.write(layout, tmp_path / "in", tensors, tower)
    functions = published.functions(tower)
    found = importing.read(place, functions)
    assert found.query is found.index and found.query.keys() == functions.abstract.keys()
    assert {x.dtype for x in found.query.values()} == {np.dtype(np.float32)}
    target = out(layout, tmp_path / "out")
    exporting.write(
        target, functions, found.index, found.query, layout=layout, dtype="source",
        record=found.record, epoch=7,
    )  # fmt: skip
    want = tensors_in(place) if layout != "open_clip" else tensors
    same_bytes(tensors_in(target), want)


@pytest.mark.parametrize("tower", [VIT, RESNET])
def test_an_archive_of_torchscript_comes_in_and_its_tensors_go_out(tower, tmp_path):
    path = published.torchscript(tmp_path / "archive.pt", tower)
    source = sources.open_source(path)
    assert source.container == "torchscript"
    functions = published.functions(tower)
    # Nothing is in doubt: OpenAI's archives have OpenAI's activation.
    assert identify.find(source, "clip_sum")[1].config == {"tower": tower, "context": 0}
    found = importing.read(path, functions)
    exporting.write(
        tmp_path / "out.pt", functions, found.index, found.query, layout="openai", dtype="source",
        record=found.record,
    )  # fmt: skip
    same_bytes(tensors_in(tmp_path / "out.pt"), published.state(tower))


def test_our_own_layout_keeps_both_trees(tmp_path):
    functions = published.functions()
    index = {p: np.asarray(x) for p, x in functions.init(0).items()}
    query = {p: x + 1 if p.startswith("text/") else x for p, x in index.items()}
    file = tmp_path / "both.safetensors"
    exporting.write(file, functions, index, query, layout="safetensors")
    names = set(safetensors.torch.load_file(file))
    text = {p for p in index if p.startswith("text/")}
    assert names == set(index) | {f"index:{p}" for p in text}
    found = importing.read(file, functions)
    for got, want in ((found.index, index), (found.query, query)):
        assert got.keys() == want.keys()
        assert all(got[p].tobytes() == want[p].tobytes() for p in want)


def test_a_single_tree_is_written_once(tmp_path):
    functions = published.functions()
    params = {p: np.asarray(x) for p, x in functions.init(0).items()}
    file = tmp_path / "one.safetensors"
    exporting.write(file, functions, params, dict(params), layout="safetensors")
    assert set(safetensors.torch.load_file(file)) == set(params)
    found = importing.read(file, functions)
    assert found.index is found.query


def test_stage_two_as_a_folder_of_transformers_has_two_text_towers(tmp_path):
    functions = published.functions()
    stage_one = importing.read(published.write("openai", tmp_path, published.state()), functions)
    after = importing.read(published.write("openai", tmp_path, published.state(seed=1)), functions)
    index = stage_one.index
    query = index | {p: x for p, x in after.query.items() if p.startswith("text/")}
    folder = tmp_path / "out"
    exporting.write(folder, functions, index, query, layout="huggingface")

    pixels = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    text = np.array([[49406, 320, 736, 49407], [49406, 9, 49407, 0]], np.int32)
    image, ids = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(text).long()
    model = CLIPModel.from_pretrained(folder)
    beside = CLIPTextModelWithProjection.from_pretrained(folder / "index_text")
    with torch.no_grad():
        their_target = model.get_image_features(image).pooler_output
        composed = their_target + model.get_text_features(ids).pooler_output
        index_text = beside(ids).text_embeds
    got = functions.compose(query, functions.reference(index, pixels, text), text)
    want = composed / composed.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    got = functions.target(index, pixels)[:, 0]
    np.testing.assert_allclose(
        got, (their_target / their_target.norm(dim=-1, keepdim=True)).numpy(), atol=1e-5
    )
    # The other text tower is the one of stage one.
    got = functions.compose(index, np.zeros((2, 1, 32), np.float32), text)
    want = index_text / index_text.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)

    back = importing.read(folder, functions)
    for got, want in ((back.index, index), (back.query, query)):
        assert all(got[p].tobytes() == want[p].tobytes() for p in want)


@pytest.mark.parametrize("layout", ["clip4cir", "spn", "openai", "open_clip"])
def test_a_file_of_one_model_has_the_query_text_tower(layout, tmp_path):
    functions = published.functions()
    index = {p: np.asarray(x) for p, x in functions.init(0).items()}
    query = {p: x + 1 if p.startswith("text/") else x for p, x in index.items()}
    for tree, text in (("retrieval", query), ("query", query), ("index", index)):
        target = out(layout, tmp_path / tree)
        exporting.write(target, functions, index, query, layout=layout, tree=tree)
        found = importing.read(target, functions)
        want = index | {p: x for p, x in text.items() if p.startswith("text/")}
        assert all(found.query[p].tobytes() == want[p].tobytes() for p in want)


@pytest.mark.parametrize("key", ["CLIP", "state_dict"])
def test_the_released_layouts_load_strictly(key, tmp_path):
    """Nothing missing and nothing left over, where the released code would not have noticed."""
    functions = published.functions(RESNET)
    params = {p: np.asarray(x) for p, x in functions.init(3).items()}
    layout = "clip4cir" if key == "CLIP" else "spn"
    exporting.write(tmp_path / "a.pt", functions, params, params, layout=layout, epoch=5)
    saved = torch.load(tmp_path / "a.pt")
    assert list(saved) == ["epoch", key] and saved["epoch"] == 5
    network = published.clip.build(published.sizes.find(RESNET), 77)
    names = {
        n.removeprefix("clip.") if key == "state_dict" else n: t for n, t in saved[key].items()
    }
    report = network.load_state_dict(names, strict=True)
    assert not report.missing_keys and not report.unexpected_keys
    counters = [t for n, t in saved[key].items() if n.endswith("num_batches_tracked")]
    assert counters and all(t.dtype == torch.int64 and t.item() == 0 for t in counters)


def test_safetensors_of_the_plain_state_dict(tmp_path):
    functions = published.functions()
    place = published.write("openai", tmp_path, published.state())
    found = importing.read(place, functions)
    target = tmp_path / "plain.safetensors"
    exporting.write(target, functions, found.index, found.query, layout="openai")
    same_bytes(tensors_in(target), published.state())
    with pytest.raises(UserError, match=r"safetensors hold tensors only, no 'CLIP'; name it \.pt"):
        exporting.write(target, functions, found.index, found.query, layout="clip4cir")


def test_where_weights_came_from_is_recorded(tmp_path):
    place = published.write("clip4cir", tmp_path, published.mixed(published.state(RESNET)), RESNET)
    record = importing.read(place, published.functions(RESNET)).record
    assert json.loads(json.dumps(record)) == record
    (file,) = record["files"]
    import hashlib

    assert file == {
        "file": str(place), "bytes": place.stat().st_size,
        "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
    }  # fmt: skip
    assert (record["layout"], record["container"]) == ("clip4cir", "torch")
    assert record["values"] == {"epoch": 7}
    assert record["dtypes"]["visual.conv1.weight"] == "float16"
    assert "visual.bn1.weight" not in record["dtypes"]
    assert record["kept"]["visual.bn1.num_batches_tracked"] > 0


def test_exports_that_cannot_be(tmp_path):
    functions = published.functions()
    params = {p: np.asarray(x) for p, x in functions.init(0).items()}

    def export(functions=functions, query=params, place=tmp_path / "x.pt", **options):
        exporting.write(place, functions, params, query, **options)

    with pytest.raises(
        UserError, match=r"--format=hugginface is unknown; .* Did you mean 'hugging"
    ):
        export(layout="hugginface")
    with pytest.raises(UserError, match=r"--tree=both is unknown; there are: retrieval, index"):
        export(layout="openai", tree="both")
    with pytest.raises(UserError, match=r"--dtype=float8 is unknown; there are: source, float32"):
        export(layout="openai", dtype="float8")
    with pytest.raises(UserError, match=r"--dtype=source: these weights came as spn"):
        export(layout="openai", dtype="source", record={"layout": "spn"})
    with pytest.raises(
        UserError, match=r"this layout is a safetensors file; name it x.safetensors"
    ):
        export(layout="safetensors")
    big = params | {"logit_scale": np.float32(1e6)}
    with pytest.raises(
        UserError, match=r"logit_scale has values up to 1e\+06, over the 65504 of f"
    ):
        export(layout="openai", query=big, tree="query", dtype="float16")
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    "tower, why",
    [
        (VIT + "+gelu", "its activation is gelu, not QuickGELU"),
        ("vit-32-16-w64-l1-h4_text-w64-l1-h1_d32", "vision has 4 heads, not 64 / 64"),
        ("vit-32-16-w64-m128-l1-h1_text-w64-l1-h1_d32", "vision has an MLP of 128, not 4 x 64"),
    ],
)
def test_openai_code_would_compute_something_else(tower, why, tmp_path):
    functions = published.functions(tower)
    params = functions.init(0)
    for layout in ("openai", "clip4cir", "spn"):
        with pytest.raises(UserError, match=why):
            exporting.write(tmp_path / "a.pt", functions, params, params, layout=layout)
    exporting.write(tmp_path / "a", functions, params, params, layout="huggingface")
    found = identify.find(sources.open_source(tmp_path / "a"), "clip_sum")[1]
    assert found.config["tower"] == tower and not found.doubt


def test_a_resnet_has_no_folder_of_transformers(tmp_path):
    functions = published.functions(RESNET)
    params = jax.tree.map(np.asarray, functions.init(0))
    with pytest.raises(UserError, match="ResNet"):
        exporting.write(tmp_path / "a", functions, params, params, layout="huggingface")
    assert not (tmp_path / "a").exists()
