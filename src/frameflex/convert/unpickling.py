"""Pickles read without running anything from them: what they name is made by the makers below, or left inert.

A pickle is a program: it names functions and classes, and has them called with what it likes. This reader never looks
a name up. A name becomes an inert `Name`; calling it, as the program asks, calls one of our own makers where the name
is harmless and known (containers, tensors, arrays of numbers, dates, paths), and gives an inert `Record` otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import math
import pathlib
import pickle
import re
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np
import torch

_PLAIN = re.compile(r"[<>=|]?([biufc]\d{1,2}|[SU]\d{1,6}|\?)")  # dtypes of numbers and text
_CONSTRUCTORS = ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__")
_WRONG = (TypeError, ValueError, OverflowError, RuntimeError, AttributeError, LookupError)


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names; it was not looked up."""

    full: str


@dataclass(eq=False, slots=True)
class Record:
    """What a pickle wanted made of a class or by a function that isn't ours to call."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    def attributes(self) -> dict[str, Any]:
        """Its attributes, as far as its state is plain."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else {}


def load(path: Path) -> tuple[Any, Counter[str]]:
    """What a file of `torch.save` holds, and how many objects of which names were left inert as a `Record`.

    Raises:
        pickle.UnpicklingError, and what `torch.load` raises: if it is damaged, or no such file.
    """
    unread: Counter[str] = Counter()

    class Reader(Unpickler):
        pass

    Reader.unread, Reader.num_bytes = unread, path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise pickle.UnpicklingError("a TorchScript program, and not weights; save its state_dict()")
            if sum(entry.file_size for entry in archive.infolist()) > Reader.num_bytes:
                raise pickle.UnpicklingError("compressed inside, which torch.save never does")
    elif tarfile.is_tarfile(path):
        raise pickle.UnpicklingError("a tar archive")

    def read(file: BinaryIO, **options: Any) -> Any:
        return Reader(file, **options).load()

    module = SimpleNamespace(__name__=__name__, Unpickler=Reader, load=read)
    content = torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    return content, unread


if TYPE_CHECKING:
    _InPython = Any
else:
    _InPython = pickle._Unpickler  # its steps can be replaced, those of the one in C can't


class Unpickler(_InPython):
    """Reads what `torch.save` and `pickle.dump` write, and keeps count of what it left inert."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_InPython.dispatch)
    unread: Counter[str]
    num_bytes: int  # of the file: no piece of it is larger

    def _decode_string(self, value: bytes) -> str:
        """Text of Python 2, which is what arrays of that time keep their bytes in, too."""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
            return torch.UntypedStorage  # torch compares with it
        if module == "torch" and isinstance(found := getattr(torch, name, None), (torch.dtype, torch.layout)):
            return found
        return Name(full)

    def make(self, what: Any, arguments: Any) -> Any:
        """The value of a call that the pickle asks for."""
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call has no list of arguments")
        if not isinstance(what, Name):
            name = what.name if isinstance(what, Record) else type(what).__name__
            return self._leave(f"{name}()", arguments)
        if what.full in _CONSTRUCTORS and arguments and isinstance(arguments[0], Name):
            return self.make(arguments[0], ())
        maker = _MAKERS.get(what.full)
        if maker is not None:
            try:
                return maker(*arguments)
            except _WRONG:
                pass  # not what the real one is called with
        return self._leave(what.full, arguments)

    def _leave(self, name: str, arguments: tuple[Any, ...]) -> Record:
        self.unread[name] += 1
        return Record(name, arguments)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_newobj_ex(self) -> None:
        named = self.stack.pop()
        arguments = self.stack.pop()
        made = self.make(self.stack.pop(), arguments)
        if named and isinstance(made, Record):
            made.state = named
        self.append(made)

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _instantiate(
        self, what: Any, arguments: list[Any]
    ) -> None:  # for INST and OBJ, of the oldest protocols
        self.append(self.make(what, tuple(arguments)))

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, Record):
            made.state = state
        elif isinstance(made, argparse.Namespace) and isinstance(state, dict):
            vars(made).update({str(key): value for key, value in state.items()})
        elif isinstance(made, (np.dtype, np.ndarray)):
            try:
                _set_byte_order(made, state) if isinstance(made, np.dtype) else _fill(made, state)
            except _WRONG:
                self.unread[f"numpy.{type(made).__name__} of objects"] += 1
        # Else attributes beside what a container or tensor holds, such as a state_dict's _metadata.

    dispatch[pickle.BUILD[0]] = load_build

    def _put(self, made: Any, pairs: list[Any]) -> None:
        entries = made.entries if isinstance(made, Record) else made
        if type(entries) not in (dict, OrderedDict):
            raise pickle.UnpicklingError(f"entries for a {type(made).__name__}")
        entries.update(zip(pairs[::2], pairs[1::2], strict=True))

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        pairs = self.pop_mark()
        self._put(self.stack[-1], pairs)

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _extend(self, made: Any, values: list[Any]) -> None:
        if isinstance(made, Record):
            made.elements.extend(values)
        elif type(made) is list:
            made.extend(values)
        elif type(made) is set:
            made.update(values)
        else:
            raise pickle.UnpicklingError(f"elements for a {type(made).__name__}")

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def load_appends(self) -> None:
        values = self.pop_mark()
        self._extend(self.stack[-1], values)

    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.ADDITEMS[0]] = load_appends

    def load_binpersid(self) -> None:
        asked = self.stack.pop()
        if not isinstance(asked, tuple) or not asked:
            raise pickle.UnpicklingError("it refers to something outside of it")
        if asked[0] in ("module", b"module"):  # of torch's oldest files: a class with its source
            self.append(asked[1])
            return
        kind, numel = asked[1], asked[4]
        itemsize = 1 if kind is torch.UntypedStorage else kind.dtype.itemsize
        if not 0 <= numel * itemsize <= self.num_bytes:
            raise pickle.UnpicklingError(f"it claims {numel} numbers in one piece, more than the file holds")
        self.append(self.persistent_load(asked))

    dispatch[pickle.BINPERSID[0]] = load_binpersid

    def load_persid(self) -> None:
        raise pickle.UnpicklingError("it refers to something outside of it")

    dispatch[pickle.PERSID[0]] = load_persid

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("it has extension codes")


# ---------------------------------------------------------------------------------------------- makers


def _dict(entries: Any = ()) -> dict[Any, Any]:
    return dict(entries)


def _encoded(text: str | bytes = b"", encoding: str = "latin1") -> bytes:
    if isinstance(text, bytes):
        return text
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise ValueError("an encoding that bytes are not pickled with")
    return text.encode(encoding)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), storage.dtype)
    untyped = storage if isinstance(storage, torch.UntypedStorage) else storage._untyped_storage
    length = untyped.nbytes() // dtype.itemsize
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= length):
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} reaches behind its {length} numbers")
    return torch.empty(0, dtype=dtype).set_(untyped, offset, tuple(size), tuple(stride))


def _parameter(data: torch.Tensor, *rest: Any) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise TypeError("a parameter that is no tensor")
    return data


def _dtype(name: Any, *rest: Any) -> np.dtype:
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise ValueError("not of numbers")
    return np.dtype(name, copy=True)


def _set_byte_order(dtype: np.dtype, state: Any) -> None:
    _, order, *parts = state
    if order not in ("<", ">", "|", "=") or any(part is not None for part in parts[:3]):
        raise ValueError("of several fields")
    dtype.__setstate__((3, order, None, None, None, *parts[3:5], 0))  # type: ignore[attr-defined]


def _array(*arguments: Any) -> np.ndarray:
    return np.empty(0, np.uint8)


def _fill(array: np.ndarray, state: Any) -> None:
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, np.dtype):
        raise ValueError("of objects")
    if isinstance(content, str):  # as `_decode_string` left the bytes of Python 2
        content = content.encode("utf-8")
        if len(content) != math.prod(shape) * dtype.itemsize:
            content = content.decode("utf-8").encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError("of objects")
    array.__setstate__((1, tuple(shape), dtype, bool(fortran), bytes(content)))  # type: ignore[arg-type]


def _array_of_bytes(content: Any, dtype: Any, shape: Any, order: str = "C", *rest: Any) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or order not in ("C", "F"):
        raise ValueError("not of numbers")
    return np.frombuffer(content, dtype).reshape(tuple(shape), order=order)  # type: ignore[call-overload]


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, np.dtype) or not isinstance(content, (bytes, bytearray)):
        raise ValueError("not of numbers")
    return np.frombuffer(content, dtype, 1)[0].item()


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(values)


_MAKERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("collections.OrderedDict", "collections.Counter", "builtins.dict"), _dict),
    "collections.defaultdict": lambda factory=None: {},
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex)
    },
    **dict.fromkeys(("builtins.bytearray", "__builtin__.bytearray", "_codecs.encode"), _encoded),
    "argparse.Namespace": argparse.Namespace,
    **{
        f"datetime.{kind.__name__}": kind
        for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone)
    },
    **{
        f"{module}.{name}": pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    **{
        f"torch._utils.{name}": _tensor
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
    },
    **dict.fromkeys(
        ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"), _parameter
    ),
    "torch.Size": _size,
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.{name}": maker
        for core in ("core", "_core")
        for name, maker in (
            ("multiarray._reconstruct", _array),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _array_of_bytes),
        )
    },
}
