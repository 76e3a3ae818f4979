"""block_linear on the CPU from the canonical blocks themselves, which can be trained: no value is packed or copied."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ajour._native import native
from ajour.ops.block_linear import reference
from ajour.ops.compiled import FLOATS, why_not
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Block
from ajour.terms.problem import ACTIVATION_CODES
from ajour.terms.row_table import RowEntry


def _product(
    x: Tensor,
    packed: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    entry: RowEntry,
    transposed: bool,
) -> Tensor:
    assert isinstance(entry.pattern, Block)
    blocks = packed[0].contiguous()
    if blocks.shape[1:] != (entry.pattern.rows, entry.pattern.cols):
        raise KernelError(f"block_linear: blocks are {tuple(blocks.shape)}, the row table says {entry.pattern}")
    if x.stride(1) != 1:
        x = x.contiguous()
    m = x.shape[0]
    y = x.new_empty(m, entry.k if transposed else entry.n)
    lent = native.BlockTensors(blocks.data_ptr(), *[index.data_ptr() for index in packed[1:6]], blocks.shape[0])
    native.block_product(
        native.BlockLayout(entry.pattern.rows, entry.pattern.cols), entry.n, entry.k, transposed, lent,
        FLOATS[entry.dtype], x.data_ptr(), m, x.stride(0), 0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(), ACTIVATION_CODES[activation], y.data_ptr(),
    )  # fmt: skip
    return y


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    return _product(x, packed, bias, residual, activation, entry, False)


def run_t(dy: Tensor, packed: Sequence[Tensor], entry: RowEntry) -> Tensor:
    """dy: [m, n] @ w: [m, k] for the canonical tensors of a BlockMatrix."""
    return _product(dy, packed, None, None, "none", entry, True)


KERNEL = Kernel(
    name="cpu_blocks",
    packing="canonical",
    why_not=why_not,
    prepack=reference.KERNEL.prepack,
    unpack=reference.KERNEL.unpack,
    run=_run,
    run_t=run_t,
    planned=False,
)
