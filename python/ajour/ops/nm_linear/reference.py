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
    each = torch.arange(kept * bits, device=values.device)
    stream = (positions[:, each // 8].long() >> (each % 8)) & 1
    within = (stream.view(n, kept, bits) << torch.arange(bits, device=values.device)).sum(-1)
    return within + torch.arange(kept, device=values.device) // pattern.keep * pattern.group


def expand(packed: Sequence[Tensor], pattern: NM, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from values and positions, differentiable in the values."""
    n, k = shape
    dense = packed[0].new_zeros(n, -(-k // pattern.group) * pattern.group)
    return dense.scatter(1, places(packed, pattern), packed[0])[:, :k]


def collect(dw: Tensor, packed: Sequence[Tensor], pattern: NM) -> Tensor:
    """The gradient of the values from dw: [n, k], the gradient of the dense weight; zero where a group overhangs k."""
    return pad(dw, (0, -dw.shape[1] % pattern.group)).gather(1, places(packed, pattern))


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    assert isinstance(entry.pattern, NM)
    shape = (entry.n, entry.k)
    stored = expand([torch.ones_like(packed[0]), *packed[1:]], entry.pattern, shape) != 0
    return masked_linear(x, expand(packed, entry.pattern, shape), stored, bias, residual, activation)


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
