"""Kernels of nm_linear in scaled_nm_linear's table: its weight with values in full is an NMMatrix, exactly.

They round x as the op says, so they are right; they read 9 bits for each weight instead of 5, so they are for devices
without a kernel of the op's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ajour.formats.e4m3 import rounded
from ajour.formats.scaled_nm import ScaledNMMatrix
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.row_table import RowEntry


def dequantized(kernel: Kernel) -> Kernel:
    """The kernel of nm_linear, for a ScaledNMMatrix."""

    def prepack(matrix: ScaledNMMatrix, config: str) -> list[Tensor]:
        tensors: list[Tensor] = kernel.prepack(matrix.to_nm(), config)
        return tensors

    def unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> ScaledNMMatrix:
        return ScaledNMMatrix.from_nm(kernel.unpack(packed, pattern, shape))

    def run(
        x: Tensor,
        packed: Sequence[Tensor],
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        entry: RowEntry,
    ) -> Tensor:
        y: Tensor = kernel.run(rounded(x), packed, bias, residual, activation, entry)
        return y

    return replace(kernel, packing=f"dequantized_{kernel.packing}", prepack=prepack, unpack=unpack, run=run)
