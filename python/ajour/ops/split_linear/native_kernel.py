"""split_linear on the CPU: the 2:4 kernel and the one for chunked rows, whose sums meet before anything is rounded.

Packed order "cpu_split": panels and codes of the 2:4 part (csrc/layout/nm_panels.h); values, columns int16 and an index
int64 of the rest (csrc/layout/chunked_rows.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ajour._native import native
from ajour.formats.split import PAIRS, SplitMatrix
from ajour.ops.bitmap_rows import pack_chunks, unpack_chunks
from ajour.ops.compiled import FLOATS, CompiledRun, why_not
from ajour.ops.nm_panels import pack_panels, panels_of, unpack_panels
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.row_table import RowEntry

_CHUNK_COLUMNS = 256


def _prepack(matrix: SplitMatrix, config: str) -> list[Tensor]:
    return [*pack_panels(matrix.pairs()), *pack_chunks(matrix.rest(), _CHUNK_COLUMNS)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> SplitMatrix:
    return SplitMatrix.of(unpack_panels(packed[:2], PAIRS, shape), unpack_chunks(packed[2:], pattern, shape))


def _compiled(entry: RowEntry) -> Any:
    return native.split_linear(panels_of(entry.n, entry.k, 2, 4, entry.dtype), FLOATS[entry.dtype])


KERNEL = Kernel(
    name="cpu", packing="cpu_split", prepack=_prepack, unpack=_unpack, why_not=why_not, run=CompiledRun(5, _compiled)
)
