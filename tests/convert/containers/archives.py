# SPDX-License-Identifier: Apache-2.0
"""Torch archives that torch would not write, to be refused; and trees to be compared."""

import zipfile

import numpy as np
import torch

from cir_jax.convert.containers.tensors import Tensor


def craft(path, pickle, storages=(), **options):
    """A zip archive with this data.pkl and these storages.

    Args:
      path: where to.
      pickle: content of data.pkl; None leaves it out.
      storages: name under data/ -> bytes.
      options: `extra` entry -> bytes, `root` folder, `method` of compression.
    """
    root, method = options.get("root", "w"), options.get("method", zipfile.ZIP_STORED)
    entries = {} if pickle is None else {"data.pkl": pickle}
    entries |= {f"data/{name}": content for name, content in dict(storages).items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in (entries | options.get("extra", {})).items():
            archive.writestr(f"{root}/{name}", content)
    return path


def storage(key=b"0", kind=b"ctorch\nFloatStorage\n", count=4):
    """Instructions that push a storage."""
    return b"(" + text(b"storage") + kind + text(key) + text(b"cpu") + number(count) + b"tQ"


def tensor(offset=0, shape=(4,), stride=(1,), more=b"\x89)", **of):
    """Instructions that push a tensor of that storage."""
    sizes = b"".join(b"(" + b"".join(map(number, axes)) + b"t" for axes in (shape, stride))
    start = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(**of)
    return start + number(offset) + sizes + more + b"tR"


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value


def number(value):
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def whole(instructions):
    return b"\x80\x02" + instructions + b"."


def state(tensor_instructions, name=b"a.weight"):
    """The pickle of a dict of one tensor."""
    return whole(b"}" + text(name) + tensor_instructions + b"s")


def numpy_of(values):
    """A tensor of torch -> array with the same bytes."""
    values = values.detach().contiguous()
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy()
    return values.numpy()


def same(theirs, ours):
    """Asserts that what torch holds and what we read agree: order, types and bytes."""
    if isinstance(theirs, torch.Tensor):
        assert type(ours) is Tensor and ours.shape == tuple(theirs.shape)
        assert ours.dtype == str(theirs.dtype).removeprefix("torch.")
        values = ours.read()
        assert values.shape == ours.shape and values.flags.c_contiguous
        assert values.dtype.name == ours.dtype and values.nbytes == ours.nbytes
        assert values.tobytes() == numpy_of(theirs).tobytes()
    elif isinstance(theirs, dict):
        assert type(ours) is dict and list(ours) == list(theirs)
        assert [type(k) for k in ours] == [type(k) for k in theirs]
        for key in theirs:
            same(theirs[key], ours[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs) and type(ours) is type(theirs)
        for one, other in zip(theirs, ours, strict=True):
            same(one, other)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs or np.isnan(theirs)


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
          torch.int16, torch.int8, torch.uint8, torch.bool)  # fmt: skip


def random_tensor(random):
    """A tensor of any type; sometimes a view, a parameter, a scalar or empty."""
    dtype = DTYPES[random.integers(len(DTYPES))]
    shape = tuple(int(n) for n in random.integers(0, 5, size=random.integers(0, 4)))
    values = torch.as_tensor(random.integers(-100, 100, size=shape) * 1.1).to(dtype)
    if values.dim() > 1 and random.random() < 0.5:
        values = values.transpose(0, 1)
    if values.dim() and random.random() < 0.3:
        values = values[1:]
    if values.dim() and random.random() < 0.3:
        values = values[..., ::2]
    if dtype.is_floating_point and random.random() < 0.3:
        values = torch.nn.Parameter(values)
    return values


def random_tree(random, leaf, depth=0):
    """A nested tree with `leaf(random)` for its tensors."""
    kind = random.integers(8 if depth < 3 else 5)
    if kind < 2:
        return leaf(random)
    if kind == 2:
        numbers = (0, 255, -1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**200), True, None)
        return numbers[random.integers(len(numbers))]
    if kind == 3:
        return float(random.normal())
    if kind == 4:
        return ("", "weights", "größe\n", "\U0001f600", "\ud800")[random.integers(5)]
    size = int(random.integers(0, 4))
    inner = [random_tree(random, leaf, depth + 1) for _ in range(size)]
    if kind == 5:
        return inner
    return {(f"key.{i}" if kind == 6 else i): one for i, one in enumerate(inner)}
