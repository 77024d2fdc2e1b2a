# SPDX-License-Identifier: Apache-2.0
"""Pickles that want to run code or to exhaust the machine: nothing runs, the file is refused."""

import os
import pickle
import random
import shutil
import tracemalloc

import numpy as np
import pytest
import torch

from cir_jax.convert.containers import torch_archive, torch_pickle
from cir_jax.errors import UserError
from tests.convert.containers import archives
from tests.convert.containers.archives import number, storage, tensor, text, whole


class Calls:
    """Pickles as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def refusal(tmp_path, data, **options):
    path = archives.craft(tmp_path / "w.pt", data, {"0": bytes(16)}, **options)
    with pytest.raises(UserError) as caught:
        torch_archive.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_a_call_is_named_and_not_made(tmp_path, protocol, nested):
    proof = tmp_path / "proof"
    bombs = {
        "posix.system": Calls(os.system, (f"touch {proof}",)),
        "builtins.eval": Calls(eval, (f"open({str(proof)!r}, 'w')",)),
        "shutil.copy": Calls(shutil.copy, (__file__, str(proof))),
        "builtins.getattr": Calls(getattr, (Calls(__import__, ("os",)), "system")),
        "numpy.fromfile": Calls(np.fromfile, (str(proof),)),
    }
    for name, bomb in bombs.items():
        value = {"a": torch.ones(1).tolist(), "b": [Calls(tuple, ([bomb],))] if nested else bomb}
        expected = "builtins.tuple" if nested else name
        found = refusal(tmp_path, pickle.dumps(value, protocol))
        assert repr(expected) in found and "wants to run code" in found
        assert "Nothing was run" in found and "safetensors" in found and "state_dict()" in found
        assert not proof.exists()


def test_torch_save_of_a_call_is_refused(tmp_path):
    bomb = Calls(os.system, (f"touch {tmp_path / 'proof'}",))
    torch.save({"model": {"weight": torch.ones(2), "bomb": bomb}}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"'posix\.system'"):
        torch_archive.read(tmp_path / "w.pt")
    assert not (tmp_path / "proof").exists()


ASKS = {
    "posix.system": b"cposix\nsystem\n" + text(b"true") + b"\x85R",
    "os.system": b"(" + text(b"true") + b"ios\nsystem\n",
    "builtins.eval": text(b"builtins") + text(b"eval") + b"\x93" + text(b"1") + b"\x85R",
    "builtins.getattr": b"c__builtin__\ngetattr\n",
    "torch.load": b"ctorch\nload\n",
    "torch._utils.rebuild": b"ctorch._utils\nrebuild\n",
    "torch.int_repr": b"ctorch\nint_repr\n",
    "torch.float16.__class__": b"ctorch\nfloat16.__class__\n",
    "collections.OrderedDict.fromkeys": b"ccollections\nOrderedDict.fromkeys\n",
    "__torch__.Storage": storage(kind=b"c__torch__\nStorage\n"),
}


@pytest.mark.parametrize("name", ASKS)
def test_names_outside_the_list_are_refused(tmp_path, name):
    assert f"asks for {name!r}" in refusal(tmp_path, whole(ASKS[name]))


def test_classes_of_a_torchscript_archive_are_inert(tmp_path):
    script = {"extra": {"constants.pkl": b"\x80\x02)."}}
    inner = b"c__torch__\nInner\n)\x81}" + text(b"weight") + tensor() + b"sb"
    outer = b"c__torch__\nOuter\n)\x81}(" + text(b"inner") + inner + text(b"n") + number(3)
    outer += text(b"enumerated") + b"c__torch__\nColour\nK\x01\x85Rub"
    path = archives.craft(tmp_path / "w.pt", whole(outer), {"0": bytes(16)}, **script)
    container, tensors = torch_archive.read(path)
    assert container == "torchscript" and list(tensors) == ["inner.weight"]
    assert "'posix.system'" in refusal(tmp_path, whole(b"cposix\nsystem\n)\x81"), **script)
    assert "no module" in refusal(tmp_path, archives.state(tensor()), **script)
    own = b"c__torch__\nOuter\n)\x81(" + tensor() + b"tb"
    assert "a form of its own" in refusal(tmp_path, whole(own), **script)
    as_storage = b"c__torch__\nOuter\n)\x81}" + text(b"a")
    as_storage += tensor(kind=b"c__torch__\nS\n") + b"sb"
    assert "without class, key and size" in refusal(tmp_path, whole(as_storage), **script)


DAMAGED = {
    "state of a class": b"ccollections\nOrderedDict\n}" + text(b"pop") + b"Nsb",
    "state of a rebuilder": b"ctorch._utils\n_rebuild_tensor_v2\nN}\x86b",
    "state of a list": b"]}b",
    "state that is no dict": b"ccollections\nOrderedDict\n)R" + text(b"x") + b"b",
    "call of a tensor": tensor() + b")R",
    "call of text": text(b"eval") + b")R",
    "call without a tuple": b"ctorch\nSize\n]R",
    "identity": text(b"0") + b"Q",
    "identity of a module": storage().replace(b"storage", b"modules"),
    "identity of another length": b"(" + text(b"storage") + b"tQ",
    "identity of a number": number(0) + b"Q",
    "storage of a type": storage(kind=b"ctorch\nfloat32\n"),
    "storage of text": storage(kind=text(b"torch.FloatStorage")),
    "storage of a negative size": storage(count=-1),
    "append to a dict": b"}Na",
    "items of a list": b"](NNu",
    "item of a tensor": tensor() + b"NNs",
    "odd items": b"}(NNNu",
    "list as a key": b"}]Ns",
    "tensor as a key": b"}" + tensor() + b"Ns",
    "memo": b"h\x05",
    "stack": b"0",
    "underflow": b"R",
    "short tuple": b"N\x87",
    "mark": b"t",
    "two values": b"NN",
    "no value": b"",
    "extension": b"\x82\x01",
    "dup": b"N2",
    "global of numbers": b"NN\x93",
    "function as a value": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(NNNtR",
    "size of nothing": b"ctorch\nSize\n)R",
    "device of a list": b"ctorch\ndevice\n]\x85R",
    "encoding": b"c_codecs\nencode\n" + text(b"a") + text(b"rot13") + b"\x86R",
    "no latin1": b"c_codecs\nencode\n" + text("€".encode()) + text(b"latin1") + b"\x86R",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_instructions_out_of_place_are_refused(tmp_path, case):
    found = refusal(tmp_path, whole(DAMAGED[case]))
    assert "damaged" in found and "fetch the file again" in found
    assert ("something other than a storage" in found) == case.startswith("identity")


def test_state_is_dropped_where_torch_keeps_it_aside(tmp_path):
    """A state dict carries `_metadata`; a poisoned one changes nothing."""
    poison = b"}" + text(b"items") + text(b"poison") + b"s"
    data = whole(b"ccollections\nOrderedDict\n)R" + text(b"a") + tensor() + b"s" + poison + b"b")
    _, tree = torch_archive.read(archives.craft(tmp_path / "w.pt", data, {"0": bytes(16)}))
    assert list(tree) == ["a"] and tree["a"].read().tolist() == [0, 0, 0, 0]


SPIRALS = {
    "list in itself": b"]q\x00h\x00a",
    "two of itself": b"]q\x00(h\x00h\x00e",
    "doubling": b"(]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"t",
    "dict in itself": b"}q\x00Nh\x00s",
    "deep tuple": b")" + b"\x85" * 100_000,
    "deep parameter": b"ctorch._utils\n_rebuild_parameter\nq\x00" * 1
    + b"h\x00" * 10_000 + tensor() + b"\x85R" * 10_000,
    "deep key": b"})" + b"\x85" * 100_000 + b"Ns",
}  # fmt: skip


@pytest.mark.parametrize("case", SPIRALS)
def test_values_without_end_are_refused(tmp_path, case):
    assert "damaged" in refusal(tmp_path, b"\x80\x02" + SPIRALS[case] + b".")


LENGTHS = {
    "text": b"X\xff\xff\xff\x7f",
    "memo": b"Nr\xff\xff\xff\xff0",
    "bytes": b"B\xff\xff\xff\x7f",
    "8-byte bytes": b"\x8e" + b"\xff" * 7 + b"\x00",
    "bytearray": b"\x96" + b"\xff" * 7 + b"\x00",
    "frame": b"\x95" + b"\xff" * 8,
    "long": b"\x8b\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("case", LENGTHS)
def test_a_damaged_length_takes_no_memory(case):
    tracemalloc.start()
    with pytest.raises(UserError, match="damaged"):
        torch_pickle.load(b"\x80\x04" + LENGTHS[case], "w.pt", False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20


def test_a_parameter_may_wrap_a_tensor_with_attributes(tmp_path):
    """The arguments of the inner call go into the one for tensors with attributes."""
    arguments = tensor().partition(b"\n_rebuild_tensor_v2\n")[2][:-1]
    data = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
    data += b"ctorch\nTensor\n" + arguments + b"}tR"
    data = b"ctorch._utils\n_rebuild_parameter\n(" + data + b"\x88NtR"
    path = archives.craft(tmp_path / "w.pt", archives.state(data), {"0": bytes(16)})
    assert torch_archive.read(path)[1]["a.weight"].shape == (4,)


def test_a_large_data_pkl_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "_MOST_PICKLE", 10)
    assert "above the limit of 10; open the file with torch" in refusal(
        tmp_path, archives.state(tensor())
    )


# The decoder of text instructions, which are refused, warns of noise in them.
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_flipped_bytes_raise_nothing_but_user_errors(tmp_path):
    """Noise in data.pkl ends in a tree or in a refusal, never in another exception."""
    drawn = random.Random(0)
    good = archives.state(tensor()) + pickle.dumps({"a": [1.5, (2, "x")], "b": None}, 2)
    refused = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(drawn.randint(1, 4)):
            data[drawn.randrange(2, len(data))] = drawn.randrange(256)
        try:
            torch_pickle.load(bytes(data), "w.pt", False)
        except UserError:
            refused += 1
    assert refused > 1000
