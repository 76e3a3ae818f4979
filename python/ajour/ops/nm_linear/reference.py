"""The meaning of nm_linear in plain torch, on the canonical tensors: y = activation(x @ w.T + bias) + residual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.formats.nm import NMMatrix
from ajour.ops.dense import apply_activation
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Pattern
from ajour.terms.row_table import RowEntry


def expand(packed: Sequence[Tensor], pattern: NM, shape: tuple[int, int]) -> Tensor:
    """w: [n, k] from values and positions, differentiable in the values."""
    values, positions = packed
    n, k = shape
    bits, groups = (pattern.group - 1).bit_length(), -(-k // pattern.group)
    each = torch.arange(groups * pattern.keep * bits, device=values.device)
    stream = (positions[:, each // 8].long() >> (each % 8)) & 1
    weights = 2 ** torch.arange(bits, device=values.device)
    place = (stream.view(n, groups * pattern.keep, bits) * weights).sum(-1)
    place = place + (torch.arange(groups * pattern.keep, device=values.device) // pattern.keep) * pattern.group
    dense = values.new_zeros(n, groups * pattern.group).scatter(1, place, values)
    return dense[:, :k]


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    assert isinstance(entry.pattern, NM)
    w = expand(packed, entry.pattern, (entry.n, entry.k))
    y = apply_activation(torch.nn.functional.linear(x, w, bias), activation)
    return y if residual is None else y + residual


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
