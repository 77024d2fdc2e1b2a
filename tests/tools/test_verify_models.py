# SPDX-License-Identifier: Apache-2.0
"""`convert_weights.py verify` of the models whose stage two is two trees: TG-CIR and SPRC."""

import re

import pytest

from cir_jax import weights
from cir_jax.convert import exporting, importing
from cir_jax.errors import UserError
from tests.convert import published, published_sprc
from tests.convert.test_sprc import saved
from tests.models import tgcir_problem
from tools import convert_weights
from tools.torch_models import verify

FAR = 1e-3  # over any difference of rounding


def compared(places, functions, found, capsys):
    """({layer: largest difference}, what PyTorch was)."""
    worst = verify.compare([str(place) for place in places], functions, found, batch=2)
    said = capsys.readouterr().out
    far = {n: float(x) for n, x in re.findall(r"^  (\S.*?) +(\d\.\d\de[-+]\d\d|inf)$", said, re.M)}
    assert max(far.values()) == pytest.approx(worst, rel=0.01)
    return far, re.search(r"PyTorch: (.*); 2 random images of \d+ pixels and texts", said)[1]


def exchanged(found):
    """The same with the trees the wrong way round."""
    return weights.Weights(found.query, found.index, {})


def test_tgcir_both_stages_layer_by_layer(tmp_path, capsys):
    functions = tgcir_problem.functions()
    for stage in (1, 2):
        path, beside = tmp_path / f"{stage}.pt", {"epoch": 3} if stage == 2 else {}
        tgcir_problem.saved(path, tgcir_problem.theirs(stage), **beside)
        found = importing.read(path, functions)
        far, whose = compared([path], functions, found, capsys)
        assert whose == f"TG-CIR with the tensors of {path}"
        assert len(far) == 4 + 5 + 1 + 3 and max(far.values()) < 1e-5
    # The index of stage two is not its query.
    far, _ = compared([path], functions, exchanged(found), capsys)
    off = {"text/tokens", "reference", "target", "query"}
    assert {name for name, x in far.items() if x > FAR} == off
    # A file of ours holds both trees.
    both = tmp_path / "both.safetensors"
    exporting.write(both, functions, found.index, found.query, layout="safetensors")
    far, whose = compared([both], functions, importing.read(both, functions), capsys)
    assert whose == "TG-CIR with the tensors that an export writes" and max(far.values()) < 1e-5


def test_a_clip_is_no_tgcir(tmp_path, capsys):
    place = published.write("clip4cir", tmp_path, published.state())
    assert convert_weights.main(["verify", str(place), "--model", "tgcir"]) == 2
    said = capsys.readouterr().err
    assert "is a CLIP to start a TG-CIR from" in said and "--model clip_sum" in said


def test_sprc_both_stages_layer_by_layer(tmp_path, capsys):
    functions = published_sprc.functions()
    for kind in ("sprc", "spn"):
        path = saved(published_sprc.network(second=kind == "spn"), tmp_path / f"{kind}.pt", kind)
        found = importing.read(path, functions)
        far, whose = compared([path], functions, found, capsys)
        assert whose == f"SPRC with the tensors of {path}"
        assert len(far) == 2 + 1 + 3 * 4 + 3 and max(far.values()) < 1e-5
        assert {"visual/tokens", "target/layer 3", "reference/layer 0", "query/layer 2"} <= set(far)
    far, _ = compared([path], functions, exchanged(found), capsys)
    same = {"visual/block 0", "visual/block 1", "visual/tokens"}
    assert {name for name, x in far.items() if x < FAR} == same
    # A run, which has no tensors of PyTorch's.
    run = tmp_path / "run"
    assert convert_weights.main(["import", str(path), str(run)]) == 0
    capsys.readouterr()
    far, whose = compared([run], functions, weights.load(str(run), functions), capsys)
    assert whose == "SPRC with the tensors that an export writes" and max(far.values()) < 1e-5


def test_blip2_to_start_sprc_from(tmp_path, capsys):
    """Of LAVIS in two files, and of transformers, which has a rule of its own for texts."""
    functions, model = published_sprc.functions(), published_sprc.network()
    files = [saved(model, tmp_path / f"{kind}.pt", kind) for kind in ("eva", "lavis_former")]
    found = weights.load(", ".join(map(str, files)), functions, seed=0)
    far, whose = compared(files, functions, found, capsys)
    assert str(files[1]) in whose and len(far) == 18 and max(far.values()) < 1e-5
    folder = tmp_path / "folder"
    exporting.write(folder, functions, found.index, found.query, layout="huggingface")
    far, whose = compared([folder], functions, found, capsys)
    assert whose.startswith("transformers' BLIP-2, which has neither reference nor query of SPRC")
    assert list(far) == ["visual/block 0", "visual/block 1", "visual/tokens", "target", "text"]
    assert max(far.values()) < 1e-4  # another epsilon of one norm


def test_pytorch_raises_where_a_tensor_is_missing(tmp_path):
    functions = published_sprc.functions()
    former = saved(published_sprc.network(), tmp_path / "former.pt", "lavis_former")
    index, query = published_sprc.ours(published_sprc.network())
    with pytest.raises(KeyError, match=r"visual_encoder\.cls_token"):
        verify.compare([str(former)], functions, weights.Weights(index, query, {}))


def test_a_model_without_one_in_pytorch(monkeypatch):
    monkeypatch.setattr(verify, "MODELS", ("clip_sum",))
    with pytest.raises(UserError, match="no PyTorch model of sprc; there are: clip_sum"):
        verify.compare(["x"], published_sprc.functions(), weights.Weights({}, {}, {}))
