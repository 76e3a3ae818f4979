"""The meaning of scaled_nm_linear in plain torch: y = activation(rounded(x) @ w.T + bias) + residual.

`rounded` brings each row of x to e4m3 under a power of two, as the weight's rows are (formats/e4m3.py). Both are exact
in x's dtype, so this is a linear layer on other numbers, and its error is that of any dense layer. A row of x with Inf
or NaN has no scale: all its outputs are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import linear

from ajour.formats.e4m3 import rounded, unround
from ajour.formats.scaled_nm import ScaledNMMatrix
from ajour.ops.dense import apply_activation
from ajour.ops.nm_linear import reference as nm_reference
from ajour.ops.reference_kernel import reference_kernel
from ajour.terms.pattern import NM
from ajour.terms.row_table import RowEntry


def expand(packed: Sequence[Tensor], pattern: NM, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from values, positions and scales, in the dtype of the scales."""
    values, positions, scales = packed
    return nm_reference.expand([unround(values, scales), positions], pattern, shape)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    assert isinstance(entry.pattern, NM)
    y = apply_activation(linear(rounded(x), expand(packed, entry.pattern, (entry.n, entry.k)), bias), activation)
    return y if residual is None else y + residual


KERNEL = replace(reference_kernel(ScaledNMMatrix, expand), run=_run)
