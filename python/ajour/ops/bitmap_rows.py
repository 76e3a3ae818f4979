"""Bitmap rows and chunked rows, the orders that CPU kernels read (csrc/layout/bitmap_rows.h, chunked_rows.h): from a
BitmapMatrix, and bit for bit back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ajour import huge_pages
from ajour._native import native
from ajour.formats.bitmap import BitmapMatrix
from ajour.memory import on_host
from ajour.terms.pattern import Pattern


def rows_view(packed: Sequence[Tensor], n: int, k: int) -> Any:
    """Bitmap rows as the compiled part sees them; the tensors must outlive it."""
    values, bits, starts = packed
    return native.BitmapRows(values.data_ptr(), bits.data_ptr(), starts.data_ptr(), n, k, values.element_size())


def pack_rows(matrix: BitmapMatrix, *, passing: bool = False) -> list[Tensor]:
    """values [non-zeros + a tail], bits int64 [n, ceil(k / 64)], starts int64 [n + 1]: on the CPU, wherever it is.

    passing: they are on the way to another form, and take no room among weights that stay.
    """
    n, k = matrix.shape
    values, bitmaps, offsets = (on_host(tensor) for tensor in matrix.tensors().values())
    packed = [
        huge_pages.empty(values.numel() + native.VALUE_TAIL, values.dtype, passing=passing),
        huge_pages.empty(n * -(-k // 64), torch.int64, passing=passing).view(n, -1),
        torch.empty(n + 1, dtype=torch.int64),
    ]
    canonical = native.BitmapTensors(values.data_ptr(), bitmaps.data_ptr(), offsets.data_ptr(), values.numel())
    native.pack_bitmap_rows(canonical, rows_view(packed, n, k))
    return packed


def unpack_rows(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BitmapMatrix:
    """The bit-exact inverse of `pack_rows`, on the tensors' device."""
    n, k = shape
    device, packed = packed[0].device, [on_host(tensor) for tensor in packed]
    tile_rows, tile_cols = -(-n // 8), -(-k // 8)
    values = packed[0].new_empty(packed[0].numel() - native.VALUE_TAIL)
    bitmaps = torch.empty(tile_rows, tile_cols, dtype=torch.int64)
    offsets = torch.empty(tile_rows * -(-tile_cols // 8) + 1, dtype=torch.int32)
    canonical = native.BitmapTensors(values.data_ptr(), bitmaps.data_ptr(), offsets.data_ptr(), values.numel())
    native.unpack_bitmap_rows(rows_view(packed, n, k), canonical)
    tensors = {"values": values, "bitmaps": bitmaps, "offsets": offsets}
    return BitmapMatrix({name: t.to(device) for name, t in tensors.items()}, pattern, shape)


def pack_chunks(matrix: BitmapMatrix, columns: int) -> list[Tensor]:
    """values, columns int16 and an index int64, in chunks of at most `columns` columns, on the matrix' device."""
    n, k = matrix.shape
    tensors = pack_rows(matrix, passing=True)
    rows, chunks = rows_view(tensors, n, k), native.chunks_of(k, columns)
    values = huge_pages.empty(tensors[0].numel(), tensors[0].dtype)
    places = huge_pages.empty(values.numel(), torch.int16)
    index = torch.empty(native.chunk_index_size(rows, chunks), dtype=torch.int64)
    native.pack_chunked_rows(rows, chunks, values.data_ptr(), places.data_ptr(), index.data_ptr())
    return [tensor.to(matrix.device) for tensor in (values, places, index)]


def unpack_chunks(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> BitmapMatrix:
    """The bit-exact inverse of `pack_chunks`."""
    n, k = shape
    values, places, index = (on_host(tensor) for tensor in packed)
    rows = [
        torch.empty_like(values),
        torch.empty(n, -(-k // 64), dtype=torch.int64),
        torch.empty(n + 1, dtype=torch.int64),
    ]
    native.unpack_chunked_rows(values.data_ptr(), places.data_ptr(), index.data_ptr(), rows_view(rows, n, k))
    return unpack_rows([tensor.to(packed[0].device) for tensor in rows], pattern, shape)
