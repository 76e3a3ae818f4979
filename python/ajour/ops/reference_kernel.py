"""The reference kernel of an op: its canonical tensors expanded to the dense weight, and one product in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.ops.dense import masked_linear
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.row_table import RowEntry

Expand = Callable[[Sequence[Tensor], Any, tuple[int, int]], Tensor]


def reference_kernel(matrix: type[SparseMatrix], expand: Expand) -> Kernel:
    """`reference` for matrices of that format.

    expand: (packed, pattern, shape) -> w: [n, k]; linear in packed[0], as its places come from ones in its stead.
    """

    def run(
        x: Tensor,
        packed: Sequence[Tensor],
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        entry: RowEntry,
    ) -> Tensor:
        shape = (entry.n, entry.k)

        def stored() -> Tensor:
            return expand([torch.ones_like(packed[0]), *packed[1:]], entry.pattern, shape) != 0

        return masked_linear(x, expand(packed, entry.pattern, shape), stored, bias, residual, activation)

    def unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> SparseMatrix:
        return matrix(dict(zip(matrix.NAMES, packed, strict=True)), pattern, shape)

    return Kernel(
        name="reference",
        packing="canonical",
        why_not=lambda problem: None,
        prepack=lambda held, config: list(held.tensors().values()),
        unpack=unpack,
        run=run,
    )
