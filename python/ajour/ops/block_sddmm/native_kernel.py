"""block_sddmm on the CPU: each live block's part of dy and x, packed once, in C++ for every instruction set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour._native import native
from ajour.terms.kernel import SampledKernel
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

_DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cpu":
        return f"it runs on the CPU, this layer is on {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"it takes {', '.join(_DTYPES)}, this layer is {problem.dtype}"
    return None


def _run(gradient: Tensor, dy: Tensor, x: Tensor, index: Sequence[Tensor], accumulate: bool, entry: RowEntry) -> None:
    assert isinstance(entry.pattern, Block)
    dy, x = (t if t.stride(1) == 1 else t.contiguous() for t in (dy, x))
    lent = native.BlockTensors(gradient.data_ptr(), *(t.data_ptr() for t in index[:5]), len(gradient))
    native.block_sddmm(
        native.BlockLayout(entry.pattern.rows, entry.pattern.cols), entry.n, entry.k, lent,
        gradient.dtype is torch.float32, accumulate, _DTYPES[entry.dtype],
        dy.data_ptr(), dy.stride(0), x.data_ptr(), x.stride(0), dy.shape[0],
    )  # fmt: skip


KERNEL = SampledKernel(name="cpu_blocks", why_not=_why_not, run=_run)
