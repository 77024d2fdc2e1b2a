# SPDX-License-Identifier: Apache-2.0
"""safetensors files against the safetensors library, both ways; and those that are refused."""

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from cir_jax.convert.containers import safe_tensors, tensors
from cir_jax.convert.containers.tensors import Tensor
from cir_jax.errors import UserError
from tests.convert.containers import archives
from tests.convert.containers.test_torch_writer import ours


def random_state(seed):
    random = np.random.default_rng(seed)
    state = {f"block.{i}.größe": archives.random_tensor(random) for i in range(8)}
    return {name: value.detach().contiguous() for name, value in state.items()}


def written(path, state, metadata):
    with open(path, "wb") as file:
        safe_tensors.write(file, state, metadata)
    return path


@pytest.mark.parametrize("seed", range(20))
def test_files_of_the_library_agree_bytewise(tmp_path, seed):
    state = random_state(seed)
    safetensors.torch.save_file(state, tmp_path / "w", {"format": "pt"})
    found, metadata = safe_tensors.read(tmp_path / "w")
    assert metadata == {"format": "pt"}
    archives.same(state, {name: found[name] for name in state})
    assert len(found) == len(state)


@pytest.mark.parametrize("seed", range(20))
def test_the_library_loads_what_is_written(tmp_path, seed):
    state = random_state(seed)
    path = written(tmp_path / "w", ours(state), {"format": "pt"} if seed % 2 else {})
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        assert archives.numpy_of(loaded[name]).tobytes() == archives.numpy_of(value).tobytes()
    plain = {n: v for n, v in state.items() if v.dtype != torch.bfloat16}
    for name, value in safetensors.numpy.load_file(written(path, ours(plain), {})).items():
        assert value.tobytes() == plain[name].numpy().tobytes()
    written(path, ours(state), {"note": "größe"})
    found, metadata = safe_tensors.read(path)
    assert metadata == {"note": "größe"}
    archives.same(state, found)  # the order too


def test_values_start_at_a_multiple_of_their_width(tmp_path):
    state = ours({"flag": torch.ones(3, dtype=torch.bool), "a": torch.ones(2).half(),
                  "wide": torch.ones(1, dtype=torch.int64)})  # fmt: skip
    raw = written(tmp_path / "w", state, {}).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    assert {name: entry["data_offsets"] for name, entry in header.items()} == {
        "flag": [12, 15], "a": [8, 12], "wide": [0, 8]}  # fmt: skip


def test_no_tensor_and_no_seeking(tmp_path):
    class Pipe(io.BytesIO):
        def seek(self, *_):
            raise io.UnsupportedOperation

        tell = seek

    pipe = Pipe()
    safe_tensors.write(pipe, {}, {})
    (tmp_path / "w").write_bytes(pipe.getvalue())
    assert safe_tensors.read(tmp_path / "w") == ({}, {})
    assert safetensors.torch.load_file(tmp_path / "w") == {}


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    lazy = lambda i: Tensor((1 << 18,), "float32", lambda: np.full(1 << 18, i, np.float32))
    state = {str(i): lazy(i) for i in range(8)}
    tracemalloc.start()
    path = written(tmp_path / "w", state, {})
    found, _ = safe_tensors.read(path)
    total = sum(float(found[name].read()[3]) for name in found)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == sum(range(8)) and most < 2.5 * (1 << 20)


def test_no_file_stays_open_or_mapped(tmp_path):
    """What the library has read of a mapped file stays in memory while it is open."""
    state = {name: torch.full((1 << 16,), i) for i, name in enumerate("ab")}
    path = written(tmp_path / "w", ours(state), {})
    found, _ = safe_tensors.read(path)
    values = [found[name].read() for name in "ab"]
    assert [int(x[-1]) for x in values] == [0, 1]
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert path not in {entry.resolve() for entry in Path("/proc/self/fd").iterdir()}


def test_jax_takes_values_where_they_are(tmp_path):
    """At a multiple of 64 bytes; from any other address it copies what goes to a CPU."""
    state = {f"{i}": torch.arange(i + 1.0) for i in range(20)}
    found, _ = safe_tensors.read(written(tmp_path / "w", ours(state), {}))
    values = [tensor.read() for tensor in found.values()]
    assert [x.ctypes.data % 64 for x in values] == [0] * 20
    assert all(x.flags.c_contiguous and x.flags.writeable for x in values)


@pytest.mark.parametrize("then", ["cut", "gone", "another"])
def test_a_file_that_changes_after_it_was_opened(then, tmp_path):
    path = written(tmp_path / "w", ours({"a": torch.ones(100)}), {})
    found, _ = safe_tensors.read(path)
    if then == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif then == "gone":
        path.unlink()
    else:
        written(path, ours({"b": torch.ones(100)}), {})
    with pytest.raises(UserError, match=r"w cannot be read \(.*\); fetch the file again"):
        found["a"].read()


def test_a_tensor_that_reads_otherwise_than_it_says_is_a_defect():
    with pytest.raises(ValueError, match="for float32"):
        one = Tensor((2,), "float32", lambda: np.zeros(3, np.float32))
        safe_tensors.write(io.BytesIO(), {"a": one}, {})


def test_the_content_tells_a_safetensors_file(tmp_path):
    written(tmp_path / "w.pt", ours({"a": torch.ones(1)}), {})
    torch.save({}, tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert safe_tensors.looks_like(tmp_path / "w.pt")
    assert not safe_tensors.looks_like(tmp_path / "w.safetensors")
    assert not safe_tensors.looks_like(tmp_path / "config.json")
    assert not safe_tensors.looks_like(tmp_path) and not safe_tensors.looks_like(tmp_path / "no")


def craft(path, header, values=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


EIGHT = bytes(8)
DAMAGED = {
    "garbage": (b"{" + b"\xff" * 20, EIGHT, "no sound JSON.*fetch"),
    "deep": (b'{"a":' + b"[" * 100_000, EIGHT, "no sound JSON.*fetch"),
    "twice": (b'{"a":{},"a":{}}', b"", "no sound JSON .*has the key 'a' twice.*fetch"),
    "entry": ({"a": 3}, EIGHT, "'a' has no shape or no place.*fetch"),
    "offsets": ({"a": entry(offsets=(0, 4, 8))}, EIGHT, "'a' has no shape or no place"),
    "axes": ({"a": entry(shape=[1] * 33)}, EIGHT, "'a' has no shape or no place"),
    "negative": ({"a": entry(shape=(-2,))}, EIGHT, "'a' has a size that is no count.*fetch"),
    "flag": ({"a": entry(shape=(True, 2))}, EIGHT, "'a' has a size that is no count"),
    "size": ({"a": entry(shape=(3,))}, EIGHT, r"'a' takes 8 bytes.*\(3,\) of F32 needs 12.*fetch"),
    "hole": ({"a": entry(offsets=(4, 12))}, bytes(12), "'a' starts at byte 4.*ends at 0.*fetch"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), "'b' starts at byte 4"),
    "cut": ({"a": entry()}, bytes(7), "7 bytes of values and its header lists 8: it is cut; fetch"),
    "more": ({"a": entry()}, bytes(9), "9 bytes .* lists 8: it is not what was written; fetch"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "no table of texts.*write the file anew"),
    "float8": ({"a": entry("F8_E4M3", (8,))}, EIGHT, "'a' has type 'F8_E4M3'.*BOOL are read.*conv"),
    "complex": ({"a": entry("C64", (1,))}, EIGHT, "'a' has type 'C64'.*BOOL are read.*convert"),
    "unknown": ({"a": entry(None)}, EIGHT, "'a' has type 'None'.*convert"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(tmp_path, case):
    header, values, match = DAMAGED[case]
    with pytest.raises(UserError, match=rf"w\.safetensors.*{match}"):
        safe_tensors.read(craft(tmp_path / "w.safetensors", header, values))


WRONG = {
    b"": "is empty",
    b"<html>": "is a web page",
    b"version https://git-lfs.github.com/spec/v1\n": "is a git-lfs pointer",
    b"\xff" * 8 + b"{}": "is not a safetensors file.*fetch the file again",
    b"\x02": "is not a safetensors file",
}


@pytest.mark.parametrize("content", WRONG, ids=["empty", "page", "pointer", "length", "byte"])
def test_other_files_are_named(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError, match=WRONG[content]):
        safe_tensors.read(tmp_path / "w")


def test_every_cut_is_refused(tmp_path):
    whole = written(tmp_path / "w", ours({"a": torch.ones(5)}), {}).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "w").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut|is empty|is not a safetensors"):
            safe_tensors.read(tmp_path / "w")


def test_a_header_length_beyond_the_file_takes_no_memory(tmp_path):
    (tmp_path / "w").write_bytes((99_999_999).to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    with pytest.raises(UserError, match="is cut within its header"):
        safe_tensors.read(tmp_path / "w")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


@pytest.fixture
def sharded(tmp_path):
    written(tmp_path / "one.safetensors", ours({"a": torch.ones(2)}), {"format": "pt"})
    written(tmp_path / "two.safetensors", ours({"b": torch.zeros(3)}), {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"

    def make(**weight_map):
        index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
        return index

    return make


def test_shards_come_back_in_the_order_of_the_index(sharded):
    index = sharded(b="two.safetensors", a="one.safetensors")
    found, metadata = safe_tensors.read_sharded(index)
    assert metadata == {"format": "pt"}
    archives.same({"b": torch.zeros(3), "a": torch.ones(2)}, found)


def test_shards_that_do_not_fit_their_index_are_refused(sharded, tmp_path):
    for name in ("../one.safetensors", str(tmp_path / "one.safetensors"), "..", "", "a\\b", 3):
        with pytest.raises(UserError, match=r"'a' .*no file name of its own folder.*trust"):
            safe_tensors.read_sharded(sharded(a=name))
    with pytest.raises(UserError, match=r"lists three\.safetensors, which is not beside it; fetch"):
        safe_tensors.read_sharded(sharded(a="one.safetensors", c="three.safetensors"))
    with pytest.raises(UserError, match=r"lists b+, which is not beside it; fetch"):
        safe_tensors.read_sharded(sharded(a="one.safetensors", c="b" * 5000))
    with pytest.raises(UserError, match=r"places 'a' in two\.safetensors, which lacks it; fetch"):
        safe_tensors.read_sharded(sharded(a="two.safetensors"))


def test_an_index_without_a_table_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{}", '{"weight_map": []}', '{"weight_map": {}}'):
        index.write_text(text)
        with pytest.raises(UserError, match=r'has no "weight_map".*fetch it again'):
            safe_tensors.read_sharded(index)
    for text in ("", "[]", "{'a'"):
        index.write_text(text)
        with pytest.raises(UserError, match=r"holds no sound JSON.*fetch the file again"):
            safe_tensors.read_sharded(index)
    with pytest.raises(UserError, match="cannot be read"):
        safe_tensors.read_sharded(tmp_path / "no.json")


def test_scalars_and_bfloat16_come_back_as_they_are(tmp_path):
    state = {"s": torch.tensor(2.5).bfloat16(), "v": torch.tensor([-1.0, 3.0]).bfloat16()}
    safetensors.torch.save_file(state, tmp_path / "w")
    found, _ = safe_tensors.read(tmp_path / "w")
    scalar = found["s"].read()
    assert scalar.shape == () and scalar.dtype == tensors.DTYPES["bfloat16"] and scalar == 2.5
    assert found["v"].read().astype(np.float32).tolist() == [-1.0, 3.0]
