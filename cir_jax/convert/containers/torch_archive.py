# SPDX-License-Identifier: Apache-2.0
"""Weights in the zip format of `torch.save` and of TorchScript, read without torch.

What torch wrote before 1.6 is no zip: `torch_legacy` finds the same in it.

Only the list of what was saved is read here (`torch_zip` finds it, `torch_pickle` takes it apart);
values come when `Tensor.read` is called, and no more of them than the tensor covers.
"""

import math
import os
import re
from typing import Any

import numpy as np

from cir_jax.convert.containers import file_kinds, torch_legacy, torch_pickle, torch_zip
from cir_jax.convert.containers.spans import Span
from cir_jax.convert.containers.tensors import DTYPES, Tensor
from cir_jax.convert.containers.torch_pickle import SCRIPTED, Call, Global, Storage
from cir_jax.convert.containers.torch_zip import Archive
from cir_jax.errors import UserError

# A tensor takes some 200 bytes of data.pkl, so a model has 10^5 and an optimizer state 10^6.
_MOST_PICKLE = 1 << 28
_DEEPEST = 64
_MOST_AXES = 32
# A parameter, of a tensor that has attributes: no tensor is wrapped more often.
_MOST_WRAPPINGS = 2
_TENSORS = (
    *torch_pickle.REBUILDERS,
    *torch_pickle.PARAMETERS,
    *torch_pickle.SPECIAL,
    torch_pickle.SUBCLASS,
)


def looks_like(path: str | os.PathLike) -> bool:
    """Whether the content is a zip archive, as torch >= 1.6 writes them."""
    return file_kinds.head(path).startswith(torch_zip.MAGIC)


def read(path: str | os.PathLike) -> tuple[str, Any]:
    """What was saved, with tensors that are not read yet.

    Args:
      path: a file of torch.save or torch.jit.save.

    Returns:
      ("torch", tree): dicts (also for OrderedDict), lists (also for sets), tuples, numbers, text,
      bytes and None, with `Tensor` for tensors and parameters, and "torch.float16" or "cuda:0" for
      a type or device.
      ("torchscript", tensors): dotted name -> Tensor; attributes that are no tensors are left out.

    Raises:
      UserError: no such archive, a damaged one, one that would run code, or one with tensors that
        are no plain arrays of the types in `tensors.DTYPES` (the tensor is named).
    """
    if torch_legacy.looks_like(path):
        archive, root, count = torch_legacy.parts(path)
        return "torch", _Plain(archive, 16 * count + _DEEPEST).value(root, ())
    if not looks_like(path):
        raise file_kinds.explain(path, "a file of torch.save")

    def work(file):
        archive = torch_zip.entries(path, file)
        return archive, archive.content(file, "data.pkl", _MOST_PICKLE)

    archive, data = file_kinds.guarded(path, work)
    scripted = "constants.pkl" in archive.entries
    root, count = torch_pickle.load(data, path, scripted)
    # A value is pushed by an instruction; one that is met far more often contains itself.
    plain = _Plain(archive, 16 * count + _DEEPEST)
    if not scripted:
        return "torch", plain.value(root, ())
    if not _is_object(root):
        raise plain.damaged((), "its outermost value is no module")
    tensors: dict[str, Tensor] = {}
    plain.attributes(root, (), tensors)
    return "torchscript", tensors


class _Plain:
    """Values as they come out of the pickle -> plain ones. `name` is the keys that lead to one."""

    def __init__(self, archive: Archive, most: int):
        self.archive, self.most = archive, most

    def damaged(self, name: tuple, why: str) -> UserError:
        where = f" at {_dotted(name)!r}" if name else ""
        return UserError(f"{self.archive.path} is damaged{where}: {why}; fetch the file again")

    def refused(self, name: tuple, what: str) -> UserError:
        return UserError(
            f"{self.archive.path}: {_dotted(name)!r} is {what}, which is not read; load the file "
            "with torch and save its weights as dense tensors of float, int or bool"
        )

    def visit(self, name: tuple) -> None:
        self.most -= 1
        if len(name) > _DEEPEST or self.most < 0:
            raise self.damaged(
                name[:3], f"values lie more than {_DEEPEST} deep or are repeated without end"
            )

    def value(self, found: Any, name: tuple) -> Any:
        """One value of what torch.save wrote, and all it contains."""
        self.visit(name)
        if type(found) is dict:
            return {key: self.value(one, (*name, key)) for key, one in found.items()}
        if type(found) in (list, tuple):
            return type(found)(self.value(one, (*name, i)) for i, one in enumerate(found))
        if type(found) is Call:
            return self.called(found, name)
        if type(found) is Storage:
            raise self.refused(name, "a storage without a tensor")
        if type(found) is Global and not torch_pickle.DTYPE.fullmatch(found.name):
            raise self.damaged(name, f"{found.name} is no value")
        return found.name if type(found) is Global else found

    def called(self, call: Call, name: tuple) -> Any:
        """What a call that was noted stands for."""
        if call.name in _TENSORS:
            return self.tensor(call, name)
        arguments = self.value(call.arguments, name)
        match call.name, arguments:
            case "torch.Size", (list() | tuple() as found,):
                return tuple(found)
            case "builtins.set", (list() as found,):
                return found
            case "torch.device", (str() as kind,):
                return kind
            case "torch.device", (str() as kind, int() as number):
                return f"{kind}:{number}"
            case "_codecs.encode", (str() as text, "latin1") if max(text, default="") < "\u0100":
                return text.encode("latin1")
            case "numpy.dtype", (str() as kind, *_):
                order = call.state[1] if type(call.state) is tuple and len(call.state) > 1 else "|"
                return f"{order}{kind}"
            case "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", (
                str() as dtype,
                bytes() as raw,
            ):
                return self.numpy_scalar(dtype, raw, name)
        raise self.damaged(name, f"{call.name} makes no value of what it is given")

    def numpy_scalar(self, dtype: str, raw: bytes, name: tuple) -> Any:
        """A number that numpy wrote, by its type ("<f8") and its bytes."""
        if not re.fullmatch(r"<[iu][248]|<f[248]|\|[iub]1", dtype):
            raise self.refused(name, f"a value of numpy's type {dtype[:20]!r}")
        if len(raw) != np.dtype(dtype).itemsize:
            raise self.damaged(name, "a number of another size than its type")
        return np.frombuffer(raw, dtype)[0].item()

    def attributes(self, module: Call, name: tuple, into: dict[str, Tensor]) -> None:
        """Adds the tensors of a TorchScript module and of those inside it."""
        self.visit(name)
        if type(module.state) is not dict:
            raise self.refused(name, "a module whose state has a form of its own")
        for key, found in module.state.items():
            inner = (*name, key)
            self.visit(inner)
            if type(found) is Call and found.name in _TENSORS:
                into[".".join(map(str, inner))] = self.tensor(found, inner)
            # Without a state it is a member of an enumeration.
            elif _is_object(found) and found.state is not None:
                self.attributes(found, inner, into)

    def tensor(self, call: Call, name: tuple) -> Tensor:
        """The tensor that a call would have made."""
        for _ in range(_MOST_WRAPPINGS):
            match call.name, call.arguments:
                case wrapper, (Call() as inner, *_) if wrapper in torch_pickle.PARAMETERS:
                    call = inner
                case torch_pickle.SUBCLASS, (Global() as function, Global(), tuple() as inner, *_):
                    call = Call(function.name, inner)
        if call.name in torch_pickle.SPECIAL:
            raise self.refused(name, torch_pickle.SPECIAL[call.name])
        match call.name, call.arguments:
            case "torch._utils._rebuild_tensor_v3", (_, _, _, _, _, _, Global() as dtype, *_):
                raise self.refused(name, f"of type {dtype.name}")
            case rebuilder, (
                Storage() as storage,
                offset,
                tuple() as shape,
                tuple() as stride,
                *more,
            ):
                numbers = (offset, *shape, *stride)
                sound = all(type(n) is int and 0 <= n < 1 << 60 for n in numbers)
                sound = sound and len(shape) == len(stride) <= _MOST_AXES
                # After gradient flag and hooks: whether it is to be conjugated or negated.
                if len(more) > 2 and more[2]:
                    raise self.refused(name, "a view that negates or conjugates its values")
                if rebuilder in torch_pickle.REBUILDERS and sound:
                    return self.view(storage, offset, shape, stride, name)
        raise self.damaged(name, "a tensor without storage, shape and strides")

    def view(
        self, storage: Storage, offset: int, shape: tuple, stride: tuple, name: tuple
    ) -> Tensor:
        """Values of a storage; `offset` and `stride` count values."""
        if storage.dtype not in DTYPES:
            kind = "quantized" if storage.dtype.startswith("q") else "of type"
            raise self.refused(name, f"{kind} {storage.dtype}")
        # Digits in every file there is; no other name may lead out of data/.
        entry = f"data/{storage.key}" if re.fullmatch(r"\w+", storage.key) else ""
        if entry not in self.archive.entries:
            raise self.damaged(name, f"there is no storage {storage.key[:50]!r}")
        start, held = self.archive.entries[entry]
        width, values = DTYPES[storage.dtype].itemsize, math.prod(shape)
        reach = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        count = reach if values else 0
        if storage.count * width > held or (count and offset + count > storage.count):
            raise self.damaged(
                name,
                f"it reaches to byte {(offset + count) * width} of a storage of "
                f"{storage.count * width}, of which the file holds {held}",
            )
        if values * width > self.archive.size:
            raise self.refused(name, f"expanded to {shape}, more bytes than the file has")
        span = Span(self.archive.path, start + offset * width, count, storage.dtype)
        return Tensor(shape, storage.dtype, lambda: span.view(shape, stride))


def _is_object(found: Any) -> bool:
    """Whether it is of one of the classes that a TorchScript archive brings along."""
    return type(found) is Call and found.name.startswith(SCRIPTED)


def _dotted(name: tuple) -> str:
    """For messages: what a damaged file calls a tensor may be long."""
    return ".".join(map(str, name))[:200]
