# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save and torch.jit.save, read without torch; and those that are refused."""

import contextlib
import tracemalloc
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from cir_jax.convert.containers import torch_archive
from cir_jax.errors import UserError
from tests.convert.containers import archives


def saved(tmp_path, value, **options):
    torch.save(value, tmp_path / "w.pt", **options)
    return torch_archive.read(tmp_path / "w.pt")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 2, bias=False)
        self.act = nn.ReLU()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).half()])
        self.width = 7
        self.names = ["a", "b"]

    def forward(self, x):
        return self.act(self.conv1(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(Block(), nn.BatchNorm2d(2))
        self.shared = self.visual[1]
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("context_length", torch.tensor(77))
        self.register_buffer("mask", torch.ones(3, 2).t())
        self.register_buffer("absent", None)

    def forward(self, x):
        return self.visual(x) * self.logit_scale


def test_a_state_dict_equals_torch(tmp_path):
    state = Model().state_dict()
    container, tree = saved(tmp_path, state)
    assert container == "torch"
    archives.same(state, tree)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compile", ["script", "trace"])
def test_a_torchscript_archive_is_its_state_dict(tmp_path, compile):
    model = Model().eval()
    made = torch.jit.script(model) if compile == "script" else torch.jit.trace(
        model, torch.zeros(1, 1, 4, 4)
    )  # fmt: skip
    torch.jit.save(made, tmp_path / "w.pt")
    container, tensors = torch_archive.read(tmp_path / "w.pt")
    assert container == "torchscript"
    want = made.state_dict()
    assert "visual.0.layers.1.weight" in want and "visual.1.num_batches_tracked" in want
    archives.same({name: want[name] for name in sorted(want)}, dict(sorted(tensors.items())))


def test_a_training_checkpoint_comes_back_whole(tmp_path):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    model(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    tree = {
        "epoch": 1,
        "CLIP": OrderedDict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "history": [0.5, float("nan"), None, True, "naïve"],
    }
    archives.same(tree, saved(tmp_path, tree)[1])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_values_that_are_no_tensors_become_plain(tmp_path, protocol):
    tree = {
        "size": torch.Size([2, 3]),
        "type": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "cpu": torch.device("cpu"),
        "set": {1},
        "bytes": b"\x00\xff",
        "best": np.float64(0.25),
        "step": np.int64(-3),
        "flag": np.bool_(True),
        "empty": (),
        "milestones": Counter([30, 60, 60]),
    }
    want = {
        "size": (2, 3),
        "type": "torch.bfloat16",
        "device": "cuda:1",
        "cpu": "cpu",
        "set": [1],
        "bytes": b"\x00\xff",
        "best": 0.25,
        "step": -3,
        "flag": True,
        "empty": (),
        "milestones": {30: 1, 60: 2},
    }
    if protocol == 4:
        del tree["set"], want["set"]  # instructions that no weights need
    _, found = saved(tmp_path, tree, pickle_protocol=protocol)
    assert found == want and [type(v) for v in found.values()] == [type(v) for v in want.values()]


def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path):
    parameter, plain = nn.Parameter(torch.randn(2, 3).t()), torch.randn(3)
    parameter.is_decoder, plain.note = True, "kept by torch"
    tree = {"parameter": parameter, "plain": plain, "bare": nn.Parameter(torch.ones(2))}
    archives.same(tree, saved(tmp_path, tree)[1])


def test_views_of_one_storage_read_only_what_they_cover(tmp_path):
    base = torch.arange(1 << 18, dtype=torch.float32)
    tree = {
        "row": base.view(512, 512)[7, :3],
        "column": base.view(512, 512)[:2, 5],
        "corner": base.view(512, 512)[2:4, 2:5].t(),
        "repeated": base[9:10].expand(4, 3),
        "none": base[5:5],
    }
    _, found = saved(tmp_path, tree)
    archives.same(tree, found)
    tracemalloc.start()
    found["row"].read(), found["corner"].read()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < base.nbytes / 8


@pytest.mark.parametrize("seed", range(40))
def test_random_trees_agree_bytewise(tmp_path, seed):
    random = np.random.default_rng(seed)
    tree = {f"{i}": archives.random_tree(random, archives.random_tensor) for i in range(5)}
    archives.same(tree, saved(tmp_path, tree, pickle_protocol=2 + seed % 3)[1])


def test_the_content_tells_a_torch_file(tmp_path):
    torch.save({}, tmp_path / "w.safetensors")
    (tmp_path / "w.pt").write_bytes(b"\x80\x02}.")
    assert torch_archive.looks_like(tmp_path / "w.safetensors")
    assert not torch_archive.looks_like(tmp_path / "w.pt")
    assert not torch_archive.looks_like(tmp_path) and not torch_archive.looks_like(tmp_path / "no")


def legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def test_the_format_before_torch_1_6_is_read(tmp_path):
    """Types, views, a storage that two tensors share, and an empty one."""
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): torch.ones(3, 2).to(kind) for kind in kinds}
    tensors |= {"whole": whole, "turned": whole.T[1:3], "empty": torch.zeros(0, 4),
                "parameter": torch.nn.Parameter(whole[:, 2])}  # fmt: skip
    legacy(tmp_path / "a.pt", {"epoch": 3, "state_dict": tensors})
    container, tree = torch_archive.read(tmp_path / "a.pt")
    assert (container, tree["epoch"]) == ("torch", 3)
    for name, tensor in tensors.items():
        found = tree["state_dict"][name].read()
        assert np.array_equal(found.astype(np.float64), tensor.detach().double().numpy()), name


class Opens:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_the_format_before_torch_1_6_is_not_run(tmp_path):
    legacy(tmp_path / "a.pt", {"a": torch.ones(2), "b": Opens(tmp_path / "was-here")})
    with pytest.raises(UserError, match=r"wants to run code when it is opened"):
        torch_archive.read(tmp_path / "a.pt")
    assert not (tmp_path / "was-here").exists()


def test_damage_in_the_format_before_torch_1_6(tmp_path):
    content = legacy(tmp_path / "a.pt", {"a": torch.ones(5), "b": torch.zeros(3, 3)})
    read = lambda: {n: t.read() for n, t in torch_archive.read(tmp_path / "a.pt")[1].items()}
    for cut in range(20, len(content), 7):
        (tmp_path / "a.pt").write_bytes(content[:cut])
        with pytest.raises(UserError):
            read()
    random = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(content)
        for place in random.integers(14, len(content), 3):
            changed[place] = random.integers(256)
        (tmp_path / "a.pt").write_bytes(changed)
        with contextlib.suppress(UserError):  # a value that changed is still one
            read()
    legacy(tmp_path / "a.pt", {"a": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(UserError, match=r"values of type complex64, which is not read"):
        read()


WRONG = {
    b"": "is empty .*fetch",
    b"\n\n<!DOCTYPE html><html>": "is a web page.*download failed.*fetch the file again",
    b"version https://git-lfs.github.com/spec/v1\noid": "git-lfs pointer.*git lfs pull",
    b"\x80\x02}q\x00.": "is a bare pickle.*where you trust it",
    b"\x93NUMPY": "is not a file of torch.save: it starts with .*NUMPY.*fetch",
}


@pytest.mark.parametrize("content", WRONG, ids=["empty", "page", "pointer", "pickle", "other"])
def test_other_files_are_named(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.pt .*{WRONG[content]}"):
        torch_archive.read(tmp_path / "w.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "no.pt", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read .*check the path"):
            torch_archive.read(path)


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path):
    _, tree = saved(tmp_path, {"a": torch.ones(1000)})
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"has become shorter.*fetch"):
        tree["a"].read()


FOUR = {"0": bytes(16)}
OUTSIDE = {
    "offset": {"offset": 1},
    "negative offset": {"offset": -1},
    "shape": {"shape": (5,)},
    "negative shape": {"shape": (-4,)},
    "stride": {"shape": (2,), "stride": (4,)},
    "negative stride": {"shape": (2,), "stride": (-1,), "offset": 3},
    "axes": {"shape": (2, 2)},
    "many axes": {"shape": (1,) * 33, "stride": (1,) * 33},
    "huge": {"shape": (2**61,), "stride": (0,)},
    "count": {"count": 5},
    "escape": {"key": b"../data.pkl"},
    "key": {"key": b""},
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_tensors_outside_their_storage_are_refused(tmp_path, case):
    pickle = archives.state(archives.tensor(**OUTSIDE[case]))
    archives.craft(tmp_path / "w.pt", pickle, FOUR)
    with pytest.raises(UserError, match=r"w\.pt is damaged at 'a\.weight': .*; fetch"):
        torch_archive.read(tmp_path / "w.pt")


def test_a_value_repeated_beyond_the_file_is_refused_before_it_takes_memory(tmp_path):
    pickle = archives.state(archives.tensor(shape=(1 << 40,), stride=(0,)))
    archives.craft(tmp_path / "w.pt", pickle, FOUR)
    with pytest.raises(UserError, match=r"'a\.weight' is expanded to .*more bytes than the file"):
        torch_archive.read(tmp_path / "w.pt")


SPECIAL = {
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), "of type complex64"),
    "float8": (lambda: torch.ones(2).to(torch.float8_e4m3fn), r"of type torch\.float8_e4m3fn"),
    "uint16": (lambda: torch.ones(2, dtype=torch.uint16), r"of type torch\.uint16"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "a quantized tensor",
    ),
    "sparse": (lambda: torch.eye(2).to_sparse(), "a sparse tensor"),
    "meta": (lambda: torch.ones(2, device="meta"), "a meta tensor"),
    "negated": (lambda: torch.ones(2, dtype=torch.complex64).conj().imag, "a view that negates"),
    "storage": (lambda: torch.ones(2).untyped_storage(), "a storage without a tensor"),
    "string": (lambda: np.str_("ab"), "a value of numpy's type"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", SPECIAL)
def test_tensors_that_are_no_plain_arrays_are_named(tmp_path, case):
    make, match = SPECIAL[case]
    with pytest.raises(UserError, match=rf"'model\.a' is {match}.*load the file with torch"):
        saved(tmp_path, {"model": {"a": make()}})
