"""bitmap_linear on the CPU from chunked rows: tokens in lanes, chunks of k in the L1 cache, rows sorted by length.

Packed order "cpu_chunks": values, columns int16 and an index int64 (csrc/layout/chunked_rows.h). It needs 6 bytes for
each float32 non-zero and 4 for each 16-bit one, less than bitmap rows where 15 of 16 weights are zeros.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ajour._native import native
from ajour.formats.bitmap import BitmapMatrix
from ajour.ops.bitmap_rows import pack_chunks, unpack_chunks
from ajour.ops.compiled import FLOATS, CompiledRun, why_not
from ajour.terms.kernel import Kernel
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

WIDE, NARROW = "256", "128"  # columns of a chunk: 128 leave room for 64 tokens in L1, better below 85 % zeros


def _configs(problem: Problem) -> tuple[str, ...]:
    return (WIDE, NARROW) if problem.dtype == "float32" and problem.m > 32 and problem.k > 128 else (WIDE,)


def _pack(matrix: BitmapMatrix, config: str) -> list[Tensor]:
    return pack_chunks(matrix, int(config or WIDE))


def _compiled(entry: RowEntry) -> Any:
    return native.chunked_linear(entry.n, entry.k, FLOATS[entry.dtype])


KERNEL = Kernel(
    name="cpu_chunked",
    packing="cpu_chunks",
    prepack=_pack,
    unpack=unpack_chunks,
    why_not=why_not,
    run=CompiledRun(3, _compiled),
    configs=_configs,
)
