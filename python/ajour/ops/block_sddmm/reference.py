"""The meaning of block_sddmm in plain torch: the live blocks of dy.T @ x, zero where a block overhangs the weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.terms.kernel import SampledKernel
from ajour.terms.pattern import Block
from ajour.terms.row_table import RowEntry


def _run(gradient: Tensor, dy: Tensor, x: Tensor, index: Sequence[Tensor], accumulate: bool, entry: RowEntry) -> None:
    assert isinstance(entry.pattern, Block)
    rows, cols = entry.pattern.rows, entry.pattern.cols
    wide = torch.promote_types(dy.dtype, torch.float32)
    dw = dy.to(wide).T @ x.to(wide)
    padded = pad(dw, (0, -dw.shape[1] % cols, 0, -dw.shape[0] % rows))
    grid = padded.view(-1, rows, padded.shape[1] // cols, cols).transpose(1, 2)
    blocks = grid[index[2].long(), index[1].long()]
    if accumulate:
        gradient.add_(blocks)
    else:
        gradient.copy_(blocks)


KERNEL = SampledKernel(name="reference", why_not=lambda problem: None, run=_run)
