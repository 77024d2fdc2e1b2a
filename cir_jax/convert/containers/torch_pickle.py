# SPDX-License-Identifier: Apache-2.0
"""The pickle inside a torch file, taken apart and never run.

A pickle is a program for a small stack machine, and some of its instructions fetch and call Python
functions. The machine here knows no functions: it moves numbers, text, lists and dicts, and notes a
call as `Call(name, arguments)`, for the reader to take as the tensor it describes. A name outside a
short list ends the reading. So a pickle finds nothing it could run, replace or poison, and as all
it holds is in memory already, it cannot ask for more.

The list is that of `torch.load(weights_only=True)`, less what holds no weights, plus the numbers of
numpy that training loops store beside them.
"""

import os
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cir_jax.errors import UserError

# Class of a storage -> its type. A file names the type of its tensors this way.
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
# Types that are not read. They are let through here, so that the message can name the tensor.
OTHER_STORAGES = {
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.QInt8Storage": "qint8",
    "torch.QUInt8Storage": "quint8",
    "torch.QInt32Storage": "qint32",
    "torch.QUInt4x2Storage": "quint4x2",
    "torch.QUInt2x4Storage": "quint2x4",
    "torch.storage.UntypedStorage": "bytes",
    "torch.storage.TypedStorage": "bytes",
}
DTYPE = re.compile(r"torch\.(bool|(b?float|q?u?int|complex|bits)\d+(_\w+|x\d+)?)")
REBUILDERS = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
)
PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
# What a TorchScript archive wraps its lists in; the first argument is the list itself.
_TAGS = (
    "torch.jit._pickle.restore_type_tag",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_boollist",
)
# Tensors that are no plain array of numbers -> what they are.
SPECIAL = {
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
}
_DICTS = ("collections.OrderedDict", "collections.Counter")
_OTHERS = (
    SUBCLASS,
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
    "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams",
    "_codecs.encode",
    "builtins.set",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
_ALLOWED = {*STORAGES, *OTHER_STORAGES, *REBUILDERS, *PARAMETERS, *SPECIAL, *_DICTS}
_ALLOWED |= {*_TAGS, *_OTHERS}
SCRIPTED = "__torch__."
_KEYS = (str, int, float, bool, type(None))


@dataclass(frozen=True, eq=False)
class Global:
    """A name the pickle asks for. It stands for nothing: there is no object behind it."""

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """A persistent id: `count` values of type `dtype` under data/`key`."""

    dtype: str
    key: str
    count: int


@dataclass(eq=False)
class Call:
    """A call that is noted, not made; `state` is what the pickle would then set on its result."""

    name: str
    arguments: tuple
    state: Any = None


class Malformed(Exception):
    """The pickle is none that torch writes; the text says what is wrong."""


def load(
    data: Any, path: str | os.PathLike, scripted: bool, storages: dict[str, Storage] | None = None
) -> tuple[Any, int]:
    """Takes `data` apart.

    Args:
      data: the bytes of data.pkl; or what can be read, of which one pickle is.
      path: of the file, for messages.
      scripted: it is of a TorchScript archive, so classes `__torch__.*` are to be expected.
      storages: gets the storages by their keys.

    Returns:
      What it describes, of dict, list, tuple, numbers, strings, bytes, None, Global, Storage and
      Call, and the number of instructions. Values may be shared, and may contain themselves.

    Raises:
      UserError: the pickle is damaged, or asks for a name that no weights need.
    """
    machine = _Machine(path, scripted, storages)
    try:
        for code, argument, _ in pickletools.genops(data):
            machine.count += 1
            step = _STEPS.get(code.name)
            if step is None:
                raise Malformed(f"instruction {code.name}, which torch.save does not write")
            step(machine, argument)
        (result,) = machine.stack
    except UserError:
        raise
    # What taking too much off the stack, an unknown memo, a list as a key and cut bytes raise.
    except (Malformed, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its data.pkl is damaged ({error}); fetch the file again"
        ) from None
    return result, machine.count


class _Machine:
    """Stack, marks and memo of a pickle that is taken apart."""

    def __init__(
        self, path: str | os.PathLike, scripted: bool, storages: dict[str, Storage] | None
    ):
        self.path, self.scripted, self.storages = path, scripted, storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under each mark
        self.memo: dict[int, Any] = {}
        self.count = 0

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.below.pop()
        return found

    def pack(self, size: int) -> None:
        if len(self.stack) < size:
            raise Malformed("a tuple of more than there is")
        items = tuple(self.stack[len(self.stack) - size :])
        del self.stack[len(self.stack) - size :]
        self.push(items)

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Malformed("appends to what is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise Malformed("sets items of what is no dict")
        # Hashing a tuple in a tuple in a tuple ... would overflow the stack of the process.
        if any(type(key) not in _KEYS for key in items[::2]):
            raise Malformed("a key that is neither text nor number")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def global_name(self, argument: str) -> None:
        """Opcode argument "module name"."""
        self.push(self.named(*argument.split(" ", 1)))

    def instance(self, argument: str) -> None:
        """Protocol 0; asked for by files that mean harm only, which are to be told what it is."""
        self.global_name(argument)
        raise Malformed("instruction INST, which torch.save does not write")

    def stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Malformed("a global that is not named by strings")
        self.push(self.named(module, name))

    def named(self, module: str, name: str) -> Global:
        # Protocol 2 writes the module by the name it had in Python 2.
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        scripted = self.scripted and full.startswith(SCRIPTED)
        if full in _ALLOWED or scripted or DTYPE.fullmatch(full):
            return Global(full)
        raise UserError(
            f"{self.path} asks for {full[:200]!r}: it wants to run code when it is opened, and "
            "weights need none. Nothing was run. If you trust it, load it with torch in a place "
            "where it can do no harm and save its `state_dict()` again, or get it as safetensors"
        )

    def call(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise Malformed("calls what is no name")
        if function.name in _DICTS:  # items are set on it next, so it must be one already
            # The dict itself: copies of copies would grow without the file growing.
            self.push(arguments[0] if arguments else {})
        elif function.name in _TAGS:
            self.push(arguments[0])
        else:
            self.push(Call(function.name, arguments))

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Call:
            target.state = state
        elif type(target) is not dict or type(state) is not dict:  # `_metadata` of a state dict
            raise Malformed("sets the state of what has none")

    def persistent(self, _: None) -> None:
        """Of the form ("storage", class, key, device, number of values); torch < 1.6 adds None."""
        found = self.stack.pop()
        if type(found) is tuple and len(found) == 6 and found[5] is None:
            found = found[:5]
        if type(found) is not tuple or len(found) != 5 or found[0] != "storage":
            raise Malformed("a reference to something other than a storage")
        _, kind, key, _, count = found
        dtype = type(kind) is Global and (STORAGES | OTHER_STORAGES).get(kind.name)
        if not dtype or type(key) is not str or type(count) is not int or count < 0:
            raise Malformed("a storage without class, key and size")
        storage = Storage(dtype, key, count)
        if self.storages is not None:
            before = self.storages.setdefault(key, storage)
            if (before.dtype, before.count) != (dtype, count):
                raise Malformed("a storage of two sizes")
        self.push(storage)

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.push(self.memo[index])


_nothing = lambda machine, _: None
_push = _Machine.push
_STEPS: dict[str, Callable[[Any, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "STOP": _nothing,
    "NONE": _push,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), _push),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.pack(1),
    "TUPLE2": lambda machine, _: machine.pack(2),
    "TUPLE3": lambda machine, _: machine.pack(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": _Machine.global_name,
    "INST": _Machine.instance,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
}
