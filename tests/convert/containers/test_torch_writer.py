# SPDX-License-Identifier: Apache-2.0
"""Files in the format of torch.save, written without torch and loaded with it."""

import io
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch

from cir_jax.convert.containers import tensors, torch_archive, torch_writer
from cir_jax.convert.containers.tensors import Tensor
from tests.convert.containers import archives


def ours(value):
    """A tree of torch -> one of `Tensor` leaves."""
    if isinstance(value, torch.Tensor):
        dtype = tensors.DTYPES[str(value.dtype).removeprefix("torch.")]
        return tensors.of(archives.numpy_of(value).view(dtype))
    if isinstance(value, dict):
        return {key: ours(one) for key, one in value.items()}
    return type(value)(map(ours, value)) if isinstance(value, list | tuple) else value


def equal(theirs, loaded):
    """Asserts that torch loads what torch holds, bit by bit."""
    assert isinstance(loaded, type(theirs)) or isinstance(theirs, torch.nn.Parameter)
    if isinstance(theirs, torch.Tensor):
        assert loaded.dtype == theirs.dtype and loaded.shape == theirs.shape
        # torch gives a tensor without values the strides of one with them.
        assert loaded.stride() == torch.empty(theirs.shape).stride()
        assert archives.numpy_of(loaded).tobytes() == archives.numpy_of(theirs).tobytes()
    elif isinstance(theirs, dict):
        assert list(loaded) == list(theirs)
        holds_tensors = any(isinstance(one, torch.Tensor) for one in theirs.values())
        assert type(loaded) is (OrderedDict if holds_tensors else dict)
        for key in theirs:
            equal(theirs[key], loaded[key])
    elif isinstance(theirs, list | tuple):
        assert len(loaded) == len(theirs)
        for one, other in zip(theirs, loaded, strict=True):
            equal(one, other)
    else:
        assert loaded == theirs and type(loaded) is type(theirs)


def written(path, tree):
    with open(path, "wb") as file:
        torch_writer.write(file, tree)
    return path


@pytest.mark.parametrize("seed", range(40))
def test_torch_loads_random_trees_bytewise(tmp_path, seed):
    random = np.random.default_rng(seed)
    tree = {f"{i}": archives.random_tree(random, archives.random_tensor) for i in range(5)}
    path = written(tmp_path / "w.pt", ours(tree))
    equal(tree, torch.load(path))
    equal(tree, torch.load(path, mmap=True))
    archives.same(tree, torch_archive.read(path)[1])


def test_a_module_loads_a_written_state_dict(tmp_path):
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    path = written(tmp_path / "w.pt", {"epoch": 7, "CLIP": ours(dict(model.state_dict()))})
    loaded = torch.load(path)
    assert loaded["epoch"] == 7
    assert "matched" in str(other.load_state_dict(loaded["CLIP"]))
    assert torch.equal(other.weight, model.weight)


def test_the_layout_is_that_of_torch(tmp_path):
    state = {"a": torch.ones(3), "b": torch.ones(0), "c": torch.ones(2, 2)}
    torch.save(state, tmp_path / "theirs.pt")
    path = written(tmp_path / "w.pt", ours(state))
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(tmp_path / "theirs.pt") as other:
        assert one.testzip() is None
        theirs = {name.partition("/")[2]: other.read(name) for name in other.namelist()}
        for info in one.infolist():
            folder, _, name = info.filename.partition("/")
            assert folder == "archive" and info.compress_type == zipfile.ZIP_STORED
            assert name == "data.pkl" or one.read(info) == theirs[name]
    assert all(start % 64 == 0 for start, _ in headers(path).values())


def headers(path):
    """Name of each entry -> (position of its bytes, extra field of its local header)."""
    whole = path.read_bytes()
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = np.frombuffer(whole, "<u2", 2, info.header_offset + 26).tolist()
            start = info.header_offset + 30 + name + extra
            found[info.filename] = (start, whole[start - extra : start])
    return found


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    reads = []

    def lazy(number):
        make = lambda: (reads.append(number), np.full(1 << 18, number, np.float32))[1]
        return Tensor((1 << 18,), "float32", make)

    tree = {str(i): lazy(i) for i in range(8)}
    tracemalloc.start()
    path = written(tmp_path / "w.pt", tree)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reads == list(range(8)) and most < 2.5 * (1 << 20)
    assert [float(v[5]) for v in torch.load(path).values()] == list(range(8))


@pytest.mark.parametrize("limit", [1 << 31, 200])
def test_large_entries_get_64_bit_sizes(tmp_path, monkeypatch, limit):
    """Of a file that is large as a whole (limit 200), and of one that is not."""
    tree = {"a": torch.arange(100.0), "b": torch.arange(7)}
    monkeypatch.setattr(torch_writer, "_LARGE", 200)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    path = written(tmp_path / "w.pt", ours(tree))
    assert (b"PK\x06\x06" in path.read_bytes()) == (limit == 200)
    sizes = (400).to_bytes(8, "little") * 2
    found = headers(path)
    assert b"\x01\x00\x10\x00" + sizes in found["archive/data/0"][1]
    assert b"\x01\x00\x10\x00" not in found["archive/data/1"][1]
    assert all(start % 64 == 0 for start, _ in found.values())
    equal(tree, torch.load(path))
    equal(tree, torch.load(path, mmap=True))
    archives.same(tree, torch_archive.read(path)[1])


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    tree = ours({"a": torch.ones(3), "epoch": 1})
    one, other = io.BytesIO(), io.BytesIO()
    torch_writer.write(one, tree)
    torch_writer.write(other, tree)
    assert one.getvalue() == other.getvalue()


def test_what_torch_could_not_load_is_not_written():
    for value in ({"a": np.ones(2)}, {1, 2}, b"bytes", {"a": object()}):
        with pytest.raises(TypeError, match=r"cannot be written into a file of torch\.save"):
            torch_writer.write(io.BytesIO(), value)


@pytest.mark.parametrize(
    "values", [np.zeros(3, np.float32), np.zeros(2, np.float64), np.zeros(2, ml_dtypes.bfloat16)]
)
def test_a_tensor_that_reads_otherwise_than_it_says_is_a_defect(values):
    with pytest.raises(ValueError, match="for float32"):
        torch_writer.write(io.BytesIO(), {"a": Tensor((2,), "float32", lambda: values)})
