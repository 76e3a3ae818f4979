"""The meaning of nm_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.formats.nm import NMMatrix
from ajour.ops.dense import masked_linear
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Pattern
from ajour.terms.row_table import RowEntry


def places(packed: Sequence[Tensor], pattern: NM) -> Tensor:
    """The column, in k padded to whole groups, of each stored value: int64 [n, groups * keep]."""
    values, positions = packed
    n, kept = values.shape
    bits = (pattern.group - 1).bit_length()
    # codes that straddle no bytes are taken apart as bytes: 2.5 ms instead of 11 (3072x768 in 2:4, Zen 5)
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=values.device)
        within = ((positions.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).view(n, -1)[:, :kept].long()
    else:
        each = torch.arange(kept * bits, device=values.device)
        stream = (positions[:, each // 8].long() >> (each % 8)) & 1
        within = (stream.view(n, kept, bits) << torch.arange(bits, device=values.device)).sum(-1)
    return within + torch.arange(kept, device=values.device) // pattern.keep * pattern.group


def expand(packed: Sequence[Tensor], pattern: NM, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from values and positions, differentiable in the values."""
    return _spread(packed[0], places(packed, pattern), pattern, shape)


def _spread(values: Tensor, at: Tensor, pattern: NM, shape: tuple[int, int]) -> Tensor:
    """[n, k] with values at those places, zero elsewhere."""
    dense = values.new_zeros(shape[0], -(-shape[1] // pattern.group) * pattern.group)
    return dense.scatter(1, at, values)[:, : shape[1]]


def collect(dw: Tensor, packed: Sequence[Tensor], pattern: NM) -> Tensor:
    """The gradient of the values from dw: [n, k], the gradient of the dense weight; zero where a group overhangs k."""
    return pad(dw, (0, -dw.shape[1] % pattern.group)).gather(1, places(packed, pattern))


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    assert isinstance(entry.pattern, NM)
    shape, at = (entry.n, entry.k), places(packed, entry.pattern)
    w, stored = (
        _spread(values, at, entry.pattern, shape) for values in (packed[0], torch.ones_like(at, dtype=torch.bool))
    )
    return masked_linear(x, w, stored, bias, residual, activation)


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    return NMMatrix(dict(zip(NMMatrix.NAMES, packed, strict=True)), pattern, shape)


KERNEL = Kernel(
    name="reference",
    packing="canonical",
    why_not=lambda problem: None,
    prepack=lambda matrix, config: list(matrix.tensors().values()),
    unpack=_unpack,
    run=_run,
)
