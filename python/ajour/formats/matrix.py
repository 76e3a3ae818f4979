"""What every format has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ajour.memory import DTYPES, on_host, packable, why_unreadable
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import Pattern

__all__ = ["DTYPES", "SparseMatrix"]

INT32_MAX = 2**31 - 1
Self = TypeVar("Self", bound="SparseMatrix")
Sizes = Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]


class SparseMatrix:
    """A weight [n, k] in its canonical, device-independent form: named plain tensors, a pattern and a shape.

    Exact: `to_dense()` gives every non-zero back bit for bit (NaN and Inf too), and +0.0 for every zero, whatever its
    sign was. N:M and bitmaps are packed and unpacked where they lie, if this build has CUDA. All else runs on the CPU,
    checking too: tensors of another device are copied there and back.
    """

    NAMES: ClassVar[tuple[str, ...]]  # of the canonical tensors, in order; the first one holds the values
    HOLDS: ClassVar[type]  # the kind of pattern
    VALUES: ClassVar[tuple[torch.dtype, ...]] = DTYPES  # that stored values may have

    def __init__(self, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> None:
        self._tensors = {name: tensors[name] for name in self.NAMES}
        self.pattern = pattern
        self.shape = (int(shape[0]), int(shape[1]))
        self.prepared: dict[tuple[str, str], tuple[list[Tensor], str]] = {}  # by kernel; filled by `ajour.linear`
        self._is_valid = False  # nothing is known of the tensors yet

    @classmethod
    def from_dense(cls: type[Self], w: Tensor, pattern: Pattern) -> Self:
        """Packs w: [n, k]; raises PatternError, naming the first offending place, if w does not fit the pattern."""
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """The weight w: [n, k], exactly."""
        raise NotImplementedError

    def validate(self) -> None:
        """Checks every index and size; raises FormatError with the place. Call it on tensors of foreign origin."""
        raise NotImplementedError

    @classmethod
    def from_tensors(cls: type[Self], tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Self:
        """From stored canonical tensors of foreign origin; validates all of them. Raises FormatError."""
        cls._check_sizes(tensors, pattern, shape)
        matrix = cls({name: tensors[name].contiguous() for name in cls.NAMES}, pattern, shape)
        return matrix.validated()

    def validated(self: Self) -> Self:
        """Itself; raises FormatError with the place, as `validate` does, unless it was found or made right before."""
        if not self._is_valid and self.device.type != "meta":
            self.validate()
        return self._trusted()

    def _trusted(self: Self) -> Self:
        self._is_valid = True
        return self

    @classmethod
    def _sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Sizes:
        """dtype (None: the weight's own) and shape that each tensor must have."""
        raise NotImplementedError

    @classmethod
    def _check_weight(cls, w: Tensor, pattern: Pattern) -> None:
        if not isinstance(pattern, cls.HOLDS) or w.dim() != 2 or w.dtype not in DTYPES:
            raise PatternError(
                f"{cls.__name__} holds a 2-D weight of floats as {_kind(cls.HOLDS)}, "
                f"found {tuple(w.shape)} {w.dtype} as {pattern}"
            )
        if reason := why_unreadable(w):
            raise PatternError(f"{cls.__name__} can't read the weight: it {reason}")

    @classmethod
    def _check_sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> None:
        """Everything that can be told without reading a value; raises FormatError."""
        if not isinstance(pattern, cls.HOLDS):
            raise FormatError(f"{cls.__name__} needs {_kind(cls.HOLDS)}, found {pattern}")
        if len(shape) != 2 or not all(type(side) is int and 0 <= side <= INT32_MAX for side in shape):
            raise FormatError(f"a weight has two sides of 0 to {INT32_MAX}, found {shape}")
        for name in cls.NAMES:
            if name not in tensors:
                raise FormatError(f"{cls.__name__} needs the tensors {', '.join(cls.NAMES)}; {name} is missing")
            if not isinstance(tensors[name], Tensor):
                raise FormatError(f"{name}: expected a tensor, found a {type(tensors[name]).__name__}")
            if reason := why_unreadable(tensors[name]):
                raise FormatError(f"{name} {reason}")
        values = tensors[cls.NAMES[0]]
        if values.dtype not in cls.VALUES:
            raise FormatError(f"{cls.NAMES[0]}: expected {', '.join(map(str, cls.VALUES))}, found {values.dtype}")
        for name, (dtype, sizes) in cls._sizes(tensors, pattern, shape).items():
            found = tensors[name]
            if found.device != values.device:
                raise FormatError(f"{name} is on {found.device}, but {cls.NAMES[0]} on {values.device}")
            if dtype is not None and found.dtype != dtype:
                raise FormatError(f"{name}: expected {dtype}, found {found.dtype}")
            if tuple(found.shape) != sizes:
                raise FormatError(f"{name}: expected shape {sizes}, found {tuple(found.shape)}")

    def _packable(self) -> dict[str, Tensor]:
        """As `_on_host`, but where they lie if this build packs there."""
        self._check_sizes(self._tensors, self.pattern, self.shape)
        return {name: packable(t) for name, t in self._tensors.items()}

    def _on_host(self) -> dict[str, Tensor]:
        """The tensors where `_C` can read them, their sizes checked: it never reads beyond them."""
        self._check_sizes(self._tensors, self.pattern, self.shape)
        return {name: on_host(t) for name, t in self._tensors.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The canonical tensors by name, values first."""
        return dict(self._tensors)

    @property
    def values(self) -> Tensor:
        """The stored values, as a rule of the weight's dtype."""
        return self._tensors[self.NAMES[0]]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def density(self) -> float:
        """Stored non-zeros / (n * k); 0.0 for an empty weight."""
        n, k = self.shape
        return int(torch.count_nonzero(self.values)) / (n * k) if n * k else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the canonical tensors."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def to(self: Self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same matrix elsewhere, or with values rounded to another dtype; indices keep theirs."""
        first = self.NAMES[0]
        moved = {name: t.to(device=device, dtype=dtype if name == first else None) for name, t in self._tensors.items()}
        matrix = type(self)(moved, self.pattern, self.shape)
        return matrix._trusted() if self._is_valid else matrix

    def __repr__(self) -> str:
        n, k = self.shape
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({n}x{k}, {self.pattern}, {dtype}, density {self.density:.3f}, {self.device})"


def _kind(pattern: type) -> str:
    return {"NM": "an N:M pattern", "Block": "a block pattern"}.get(pattern.__name__, f"{pattern.__name__}()")
