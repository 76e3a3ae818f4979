"""The names that a pickle of tensors and plain containers may use, and the values of our own that they become."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class UnreadableError(ValueError):
    """A pickle names something that is neither a tensor nor a plain container."""


@dataclass(frozen=True)
class Name:
    """A name in a pickle. make: what calling it gives. dtype: of a storage's class, or the dtype itself."""

    text: str
    make: Callable[..., Any] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose values have not been read: a view of `storage`, in elements of `dtype`."""

    storage: Any
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class NumpyType:
    """A numpy dtype of plain numbers, such as i8; its state says the byte order."""

    code: str
    order: str = "<"

    def set_state(self, state: Any) -> None:
        """As numpy pickles it: (version, byte order, ...)."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise UnreadableError("numpy.dtype with fields of its own")
        self.order = ">" if state[1] == ">" else "<"


def plain_key(key: Any) -> Hashable:
    """The key of a dict or member of a set; a tuple's hash walks all that is in it, which can be made endless."""
    if key is not None and not isinstance(key, str | int | float | bytes):
        raise ValueError(f"a {type(key).__name__} is the key of a dict")
    if isinstance(key, int) and not -(2**63) <= key < 2**64:  # Python prints no longer ones, and hashes many alike
        raise ValueError("a whole number of more than 64 bits is the key of a dict")
    hashable: Hashable = key
    return hashable


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(type(v) is int and 0 <= v < 2**62 for v in values):
        raise UnreadableError("a tensor whose sizes are no whole numbers")
    if len(values) > 64:
        raise UnreadableError(f"a tensor of {len(values)} dimensions")
    return tuple(values)


def _refuse_flags(metadata: Any) -> None:
    """A tensor saved as a conjugate or a negative view holds other values than its storage."""
    if metadata is not None and not isinstance(metadata, dict):
        raise UnreadableError("a tensor whose metadata are no dict")
    for flag, raised in (metadata or {}).items():
        if raised is not False:
            said = flag[:40] if isinstance(flag, str) else "unknown"
            raise UnreadableError(f"a tensor that was saved as a view with the flag {said!r}; resolve it first")


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None, hooks: Any = None, metadata: Any = None,
    dtype: torch.dtype | None = None,
) -> Any:  # fmt: skip
    """Checked against its storage, so that nothing outside is read and a tensor is no larger than what holds it."""
    _refuse_flags(metadata)
    held = getattr(storage, "dtype", None)
    size, stride, (offset,) = _sizes(size), _sizes(stride), _sizes((offset,))
    if not isinstance(held, torch.dtype) or len(size) != len(stride):
        raise UnreadableError("a tensor without a storage")
    kind = held if dtype is None else dtype
    count = storage.nbytes // kind.itemsize
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if 0 not in size and last >= count:
        raise ValueError("a tensor reaches beyond its storage")
    if math.prod(size) > count:
        raise UnreadableError(f"a tensor of {size} that repeats {count} values (it was expanded when it was saved)")
    return StoredTensor(storage, kind, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    if not isinstance(dtype, Name) or dtype.dtype is None:
        raise UnreadableError("a tensor without a dtype")
    return _tensor(storage, offset, size, stride, metadata=metadata, dtype=dtype.dtype)


def _parameter(data: Any, *rest: Any) -> Any:
    if not isinstance(data, StoredTensor):
        raise UnreadableError("a parameter that holds no tensor")
    return data


def _ordered_dict(items: Sequence[Any] = ()) -> dict[Any, Any]:
    pairs = isinstance(items, list | tuple) and all(isinstance(item, list | tuple) and len(item) == 2 for item in items)
    if not pairs:
        raise ValueError("no items of a dict")
    return {plain_key(key): value for key, value in items}


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    return {}


def _set(items: Sequence[Any] = ()) -> frozenset[Any]:
    if not isinstance(items, list | tuple):
        raise ValueError("no items of a set")
    return frozenset(map(plain_key, items))


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        said = encoding[:40] if isinstance(encoding, str) else type(encoding).__name__
        raise UnreadableError(f"_codecs.encode to {said}")
    return text.encode("latin-1")


def _bytes(*data: Any) -> bytes:
    if data and not (len(data) == 1 and isinstance(data[0], bytes)):
        raise UnreadableError("bytes made of something else")
    return bytes(*data)


_NUMBERS = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f4": "f", "f8": "d",
    "b1": "?",
}  # fmt: skip


def _numpy_type(code: Any, *rest: Any) -> NumpyType:
    if not isinstance(code, str) or code.lstrip("<>|=") not in _NUMBERS:
        raise UnreadableError(f"numpy.dtype {code[:40] if isinstance(code, str) else type(code).__name__!r}")
    return NumpyType(code.lstrip("<>|="), ">" if code.startswith(">") else "<")


def _numpy_number(kind: Any, data: Any) -> Any:
    """A number that numpy made, as one of Python's own."""
    if not isinstance(kind, NumpyType) or not isinstance(data, bytes):
        raise UnreadableError("numpy.core.multiarray.scalar of no plain number")
    return struct.unpack(kind.order + _NUMBERS[kind.code], data)[0]


_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
_DTYPES = (
    *_STORAGES.values(), torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _sizes,
    "torch.device": lambda *place: place,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_type,
}
for _module in ("__builtin__", "builtins"):
    _FUNCTIONS |= {f"{_module}.bytes": _bytes, f"{_module}.bytearray": _bytes}
    _FUNCTIONS |= {f"{_module}.set": _set, f"{_module}.frozenset": _set}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _FUNCTIONS[f"{_module}.scalar"] = _numpy_number

NAMES = {text: Name(text, make) for text, make in _FUNCTIONS.items()}
NAMES |= {f"torch.{kind}Storage": Name(f"torch.{kind}Storage", dtype=dtype) for kind, dtype in _STORAGES.items()}
NAMES |= {str(dtype): Name(str(dtype), dtype=dtype) for dtype in _DTYPES}
for _text in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
    NAMES[_text] = Name(_text, dtype=torch.uint8)
for _kind in ("list", "dict", "int", "float"):  # what a defaultdict is made with
    NAMES |= {f"{_module}.{_kind}": Name(f"{_module}.{_kind}") for _module in ("__builtin__", "builtins")}
