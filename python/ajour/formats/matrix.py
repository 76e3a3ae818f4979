"""What every format has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ajour.terms.errors import FormatError
from ajour.terms.pattern import Pattern

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Self = TypeVar("Self", bound="SparseMatrix")


class SparseMatrix:
    """A weight [n, k] in its canonical, device-independent form: named plain tensors, a pattern and a shape.

    Exact: `to_dense()` gives every non-zero back bit for bit (NaN and Inf too), and +0.0 for every zero, whatever its
    sign was.
    """

    NAMES: ClassVar[tuple[str, ...]]  # of the canonical tensors, in order; the first one holds the values

    def __init__(self, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> None:
        self._tensors = {name: tensors[name] for name in self.NAMES}
        self.pattern = pattern
        self.shape = (int(shape[0]), int(shape[1]))
        self.prepared: dict[tuple[str, str], tuple[list[Tensor], str]] = {}  # by kernel; filled by `ajour.linear`

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
        for name in cls.NAMES:
            if name not in tensors:
                raise FormatError(f"{cls.__name__} needs the tensors {', '.join(cls.NAMES)}; {name} is missing")
        matrix = cls(tensors, pattern, shape)
        matrix.validate()
        return matrix

    def tensors(self) -> dict[str, Tensor]:
        """The canonical tensors by name, values first."""
        return dict(self._tensors)

    @property
    def values(self) -> Tensor:
        """The stored values, of the weight's dtype."""
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
        moved = {
            name: t.to(device=device, dtype=dtype if name == first else None) for name, t in self._tensors.items()
        }
        return type(self)(moved, self.pattern, self.shape)

    def __repr__(self) -> str:
        n, k = self.shape
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({n}x{k}, {self.pattern}, {dtype}, density {self.density:.3f}, {self.device})"
