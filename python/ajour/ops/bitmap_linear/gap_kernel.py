"""bitmap_linear for 1 to 4 rows and few non-zeros on a GPU: values and the gaps between them, on CUDA cores.

Packed order "gap_rows" (csrc/layout/gap_rows.h): the groups as words of the weight's dtype, int32 index, int32 order of
the rows. A value takes 24 bits and a zero none, against 16 and one in a bitmap: fewer bytes below one non-zero in
eight, and much less to decode.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.bitmap import BitmapMatrix, lend, room_for
from ajour.memory import lent, on_host, packable, packer
from ajour.ops import decode
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

MOST_ROWS: int = native.GAP_ROWS
DENSEST = 0.25  # twice the density from which a bitmap has fewer bytes: decoding one takes longer than reading it
_CONFIG = re.compile(r"c(\d+)")
_CONFIGS = ("c3", "c2", "c4")


@cache
def rows_of(n: int, k: int) -> Any:
    """The GapRows of a weight."""
    return native.GapRows(n, k)


def _why_not(problem: Problem) -> str | None:
    if refusal := decode.why_not(problem):
        return refusal
    if problem.m > MOST_ROWS:
        return f"it is for 1 to {MOST_ROWS} rows, these are {problem.m} rows"
    if problem.density > DENSEST:
        return f"gaps pay up to {DENSEST:.0%} non-zeros, this weight has {problem.density:.1%}"
    return None


def _configs(problem: Problem) -> tuple[str, ...]:
    """ "c3": three blocks on a multiprocessor; the likely best one first."""
    return _CONFIGS


def _prepack(matrix: BitmapMatrix, config: str) -> list[Tensor]:
    matrix.validate()  # the index is made of its bits
    n, k = matrix.shape
    layout = rows_of(n, k)
    tensors = {name: packable(t) for name, t in matrix.tensors().items()}
    values, canonical = tensors["values"], lend(tensors)
    counts = values.new_empty(n, dtype=torch.int32)
    packer("count_gap_rows", values)(layout, canonical, counts.data_ptr())
    counts, order = on_host(counts), torch.empty(4 * layout.groups, dtype=torch.int32)
    native.order_gap_rows(layout, counts.data_ptr(), order.data_ptr())
    order = order.to(values.device)
    steps = values.new_empty(layout.spans * order.numel(), dtype=torch.int32)
    packer("measure_gap_rows", values)(layout, canonical, order.data_ptr(), steps.data_ptr())
    steps, index = on_host(steps), torch.empty(layout.spans * layout.groups + 1, dtype=torch.int32)
    native.index_gap_rows(layout, steps.data_ptr(), index.data_ptr())
    data = values.new_zeros(int(index[-1]) * native.GAP_UNIT // values.element_size())
    index = index.to(values.device)
    packer("pack_gap_rows", values)(layout, canonical, order.data_ptr(), index.data_ptr(), data.data_ptr())
    return [t.to(matrix.device) for t in (data, index, order)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BitmapMatrix:
    data, index, order = (packable(t) for t in packed)
    head = rows_of(*shape), data.data_ptr(), order.data_ptr(), index.data_ptr()
    tensors = room_for(data, lambda found: packer("find_gap_rows", data)(*head, found), shape)
    packer("unpack_gap_rows", data)(*head, lend(tensors))
    return BitmapMatrix({name: t.to(packed[0].device) for name, t in tensors.items()}, pattern, shape)


@cache
def _launch(m: int, n: int, k: int, config: str, device: int) -> tuple[Any, Any, int]:
    """Layout, shape, and words of scratch: the same in every call of a layer."""
    found = _CONFIG.fullmatch(config or _CONFIGS[0])
    if found is None:
        raise KernelError(f"{config!r} is no configuration of gap rows; expected something like {_CONFIGS[0]!r}")
    layout = rows_of(n, k)
    shape = native.GapShape(m, layout, decode.limits_of(device), int(found[1]))
    return layout, shape, shape.scratch_bytes // 2


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    data, index, order = packed
    m = x.shape[0]
    if m > MOST_ROWS:
        return decode.in_pieces(_run, x, packed, bias, residual, activation, entry, MOST_ROWS)
    layout, shape, room = _launch(m, entry.n, entry.k, entry.config, x.get_device())
    head = (layout, lent(data), lent(index), lent(order), shape)
    return decode.launch(native.gap_decode, head, room, x, bias, residual, activation, entry)


KERNEL = Kernel(
    name="cuda_gaps",
    packing="gap_rows",
    why_not=_why_not,
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=_configs,
)
