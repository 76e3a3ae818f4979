"""nm_linear for 1 to 64 rows on a GPU, at the speed of memory: slabs in the order of the tensor cores, in CUDA.

2:4 goes through the sparse tensor cores. Other patterns with a group of 4, 8, 16 or 32 are expanded in registers; they
gain by their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from ajour._native import native
from ajour.ops import decode
from ajour.ops.nm_linear import slabs
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

GROUPS = (4, 8, 16, 32)


def _why_not(problem: Problem) -> str | None:
    assert isinstance(problem.pattern, NM)
    if problem.pattern.group not in GROUPS:
        return f"it takes groups of 4, 8, 16 and 32, this pattern is {problem.pattern}"
    if refusal := decode.why_not(problem):
        return refusal
    layout = slabs.layout_of(problem.pattern, problem.n, problem.k)
    return decode.why_no_room(problem, layout.columns, layout.slab_bytes)


@cache
def _launch(keep: int, group: int, n: int, k: int, tokens: int, config: str, device: int) -> tuple[Any, Any, int]:
    """Layout, shape, and elements of scratch: the same in every call of a layer. Keyed by numbers, which hash fast."""
    layout = slabs.layout_of(NM(keep, group), n, k)
    shape = decode.shape_of(tokens, n, k, layout.columns, layout.slab_bytes, config, device)
    return layout, shape, shape.scratch_bytes // 2


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    stride, of_one_column = x.stride()
    if of_one_column != 1:
        x = x.contiguous()
        stride = entry.k
    m, device, pattern = x.shape[0], x.get_device(), entry.pattern
    if m > decode.MOST_ROWS:
        return decode.in_pieces(_run, x, packed, bias, residual, activation, entry)
    layout, shape, room = _launch(
        pattern.keep,  # type: ignore[union-attr]
        pattern.group,  # type: ignore[union-attr]
        entry.n,
        entry.k,
        decode.tokens_of(m),
        entry.config,
        device,
    )
    y = x.new_empty(m, entry.n)
    scratch = x.new_empty(room) if room else None
    native.nm_decode(
        layout,
        packed[0].data_ptr(),
        shape,
        x.data_ptr(),
        stride,
        m,
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        0 if scratch is None else scratch.data_ptr(),
        entry.dtype == "bfloat16",
        decode.ACTIVATION_CODES[activation],
        device,
        decode.stream_of(device),
    )
    return y


KERNEL = Kernel(
    name="cuda_decode",
    packing=slabs.PACKING,
    why_not=_why_not,
    prepack=slabs.prepack,
    unpack=slabs.unpack,
    run=_run,
    configs=decode.configs,
)
