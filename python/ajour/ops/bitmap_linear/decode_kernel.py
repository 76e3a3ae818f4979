"""bitmap_linear for 1 to 64 rows on a GPU, at the speed of memory: slabs in the order of the tensor cores, in CUDA.

Packed order "bitmap_slabs" (csrc/layout/bitmap_slabs.h): the slabs as words of the weight's dtype, int32 index, and a
uint8 tensor of zeros as large as the largest slab, whose size the host reads without waiting for the device.
"""

from __future__ import annotations

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
from ajour.terms.row_table import RowEntry

_COLUMNS = 64  # of a slab
_UNIT = 16  # bytes in which the index counts
_FEW = 16  # rows that fit beside full slabs on every card


@cache
def slabs_of(n: int, k: int) -> Any:
    """The BitmapSlabs of a weight."""
    return native.BitmapSlabs(n, k)


def _prepack(matrix: BitmapMatrix, config: str) -> list[Tensor]:
    matrix.validate()  # the index is made of its offsets: 0.5 ms for 4096x4096 (EPYC, 2 threads)
    layout = slabs_of(*matrix.shape)
    tensors = {name: packable(t) for name, t in matrix.tensors().items()}
    values, offsets = tensors["values"], on_host(tensors["offsets"])
    index = torch.empty(layout.count + 2, dtype=torch.int32)
    largest = native.index_bitmap_slabs(layout, offsets.data_ptr(), index.data_ptr())
    slabs = values.new_empty(int(index[-1]) * _UNIT // values.element_size())
    index = index.to(values.device)
    packer("pack_bitmap_slabs", slabs)(layout, lend(tensors), index.data_ptr(), slabs.data_ptr())
    room = values.new_zeros(largest, dtype=torch.uint8)
    return [t.to(matrix.device) for t in (slabs, index, room)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BitmapMatrix:
    slabs, index = packable(packed[0]), packable(packed[1])
    head = slabs_of(*shape), slabs.data_ptr(), index.data_ptr()
    tensors = room_for(slabs, lambda found: packer("find_bitmap_slabs", slabs)(*head, found), shape)
    packer("unpack_bitmap_slabs", slabs)(*head, lend(tensors))
    return BitmapMatrix({name: t.to(packed[0].device) for name, t in tensors.items()}, pattern, shape)


@cache
def _shape(m: int, n: int, k: int, room: int, config: str, device: int) -> Any:
    """The DecodeShape; None where this device's shared memory can't hold so many rows beside such slabs."""
    try:
        return decode.shape_of(m, n, k, _COLUMNS, room, config, device)
    except KernelError:
        if m <= _FEW:
            raise
        return None


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    slabs, index, room = packed
    m, n, k = x.shape[0], entry.n, entry.k
    if m > decode.MOST_ROWS:
        return decode.in_pieces(_run, x, packed, bias, residual, activation, entry)
    shape = _shape(m, n, k, room.shape[0], entry.config, x.get_device())
    if shape is None:
        return decode.in_pieces(_run, x, packed, bias, residual, activation, entry, _FEW)
    head = (slabs_of(n, k), lent(slabs), lent(index), shape)
    return decode.launch(native.bitmap_decode, head, shape.scratch_bytes // 2, x, bias, residual, activation, entry)


KERNEL = Kernel(
    name="cuda_decode",
    packing="bitmap_slabs",
    why_not=decode.why_not,
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=decode.configs,
)
