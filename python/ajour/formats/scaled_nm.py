"""ScaledNMMatrix: 2:4 with values in e4m3 and a scale for each row; 5 bits for each weight of the dense layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ajour.formats.e4m3 import E4M3, EXPONENTS, round_rows, row_scales, unround
from ajour.formats.matrix import Sizes, SparseMatrix
from ajour.formats.nm import NMMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM, Pattern

TWO_OF_FOUR = NM(2, 4)


class ScaledNMMatrix(SparseMatrix):
    """values: float8_e4m3fn [n, 2 * groups], positions: uint8 as in NMMatrix, scales: [n] in the weight's own dtype.

    The weight is values * scales, exactly: a scale is a power of two, the smallest that holds its row, so the weight
    that this stands for is a bfloat16 or float16 weight like any other, and `from_dense(to_dense())` gives the same
    tensors. A weight whose values need more than 4 bits does not fit; `quantize` rounds it, and `ajour.quantize` says
    what that loses. NaN and Inf can't be held.
    """

    NAMES = ("values", "positions", "scales")
    HOLDS = NM
    VALUES: ClassVar = (E4M3,)

    @classmethod
    def from_dense(cls, w: Tensor, pattern: Pattern = TWO_OF_FOUR) -> ScaledNMMatrix:
        cls._check_weight(w, pattern)
        return cls.from_nm(NMMatrix.from_dense(w, pattern))

    @classmethod
    def quantize(cls, w: Tensor) -> ScaledNMMatrix:
        """w: [n, k], 2:4, rounded to what this format holds. Raises PatternError for NaN, Inf, and other patterns."""
        cls._check_weight(w, TWO_OF_FOUR)
        NMMatrix.from_dense(w, TWO_OF_FOUR)  # refuses what is not 2:4 before rounding makes it so
        scales = row_scales(w)
        _refuse_unfinite(scales)
        return cls.from_dense(unround(round_rows(w, scales), scales))

    @classmethod
    def from_nm(cls, matrix: NMMatrix) -> ScaledNMMatrix:
        """The same weight, if that loses nothing; else PatternError, which names the first value that would be lost."""
        values, positions = matrix.tensors().values()
        if matrix.pattern != TWO_OF_FOUR or values.dtype not in EXPONENTS:
            raise PatternError(
                f"{cls.__name__} holds 2:4 in bfloat16 or float16, found {matrix.pattern}, {values.dtype}"
            )
        scales = row_scales(values)
        _refuse_unfinite(scales)
        small = round_rows(values, scales)
        lost = (unround(small, scales) != values).nonzero()
        if len(lost):
            row, entry = lost[0].tolist()
            raise PatternError(
                f"{cls.__name__} holds e4m3 times a power of two for each row; row {row} holds "
                f"{float(values[row, entry])!r}, which is none ({len(lost)} of {values.numel()} values are not); "
                "ajour.quantize rounds a model's weights, and reports what that loses"
            )
        return cls({"values": small, "positions": positions, "scales": scales}, matrix.pattern, matrix.shape)

    def to_nm(self) -> NMMatrix:
        """The same weight with its values in full."""
        values, positions, scales = self._tensors.values()
        return NMMatrix({"values": unround(values, scales), "positions": positions}, self.pattern, self.shape)

    def rows(self, first: int, stop: int) -> ScaledNMMatrix:
        """Rows first to stop - 1 as a matrix of their own, in this one's memory."""
        tensors = {name: t[first:stop] for name, t in self._tensors.items()}
        return type(self)(tensors, self.pattern, (stop - first, self.shape[1]))

    def to_dense(self) -> Tensor:
        self._check_sizes(self._tensors, self.pattern, self.shape)
        return self.to_nm().to_dense()

    def validate(self) -> None:
        values, _, scales = self._on_host().values()
        if bool(values.isnan().any()):
            raise FormatError(f"values: row {int(values.isnan().any(1).nonzero()[0])} holds NaN, which no weight may")
        wrong = (row_scales(unround(values, scales)) != scales).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise FormatError(
                f"scales: row {row} has {float(scales[row])!r}; expected the smallest power of two that holds the row"
            )
        if bool((values.view(torch.uint8) == 0x80).any()):
            raise FormatError("values: found -0.0, which is stored as +0.0")
        self.to_nm().validate()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ScaledNMMatrix:
        """The same matrix elsewhere, or for x of another dtype. Raises PatternError if that can't hold the weight."""
        if dtype is None or dtype == self.dtype:
            return type(self)({name: t.to(device) for name, t in self._tensors.items()}, self.pattern, self.shape)
        name = str(dtype).removeprefix("torch.")
        if dtype not in EXPONENTS:
            raise PatternError(f"{type(self).__name__} stands for a weight in bfloat16 or float16, not in {name}")
        held = self.to_nm()
        moved = held.to(device, dtype)
        if not torch.equal(moved.values.float(), held.values.to(device).float()):
            raise PatternError(f"{type(self).__name__}: {name} does not hold this weight exactly")
        return type(self).from_nm(moved)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that this stands for, and of x."""
        return self._tensors["scales"].dtype

    @property
    def density(self) -> float:
        """Stored non-zeros / (n * k); 0.0 for an empty weight."""
        n, k = self.shape
        return int((self.values.view(torch.uint8) != 0).sum()) / (n * k) if n * k else 0.0

    @classmethod
    def _check_weight(cls, w: Tensor, pattern: Pattern) -> None:
        super()._check_weight(w, pattern)
        if pattern != TWO_OF_FOUR or w.dtype not in EXPONENTS:
            raise PatternError(f"{cls.__name__} holds 2:4 in bfloat16 or float16, found {w.dtype} as {pattern}")

    @classmethod
    def _check_sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> None:
        super()._check_sizes(tensors, pattern, shape)
        if pattern != TWO_OF_FOUR or tensors["scales"].dtype not in EXPONENTS:
            raise FormatError(
                f"{cls.__name__} needs 2:4 with scales in bfloat16 or float16, "
                f"found {pattern} with {tensors['scales'].dtype}"
            )

    @classmethod
    def _sizes(cls, tensors: Mapping[str, Tensor], pattern: Pattern, shape: tuple[int, int]) -> Sizes:
        return {**NMMatrix._sizes(tensors, pattern, shape), "scales": (None, (shape[0],))}


def _refuse_unfinite(scales: Tensor) -> None:
    if bool(scales.isnan().any()):
        row = int(scales.isnan().nonzero()[0])
        raise PatternError(f"ScaledNMMatrix can't hold NaN or Inf, found one in row {row}")
