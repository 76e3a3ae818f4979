"""nm_linear at 2:4 for many rows on Hopper: `wgmma.sp`, the sparse tensor cores of sm_90a, in CUTLASS's main loop.

Packed order "nm_sm90": the canonical values themselves, [n, k / 2], and their positions as uint8 in the order of the
instruction (csrc/layout/sm90_metadata.h). It is not that of `cuda_decode`, which has values in the order of registers:
CUTLASS's main loop takes the weight from shared memory alone, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ajour._native import native
from ajour.formats.nm import NMMatrix
from ajour.memory import packer
from ajour.ops import sm90
from ajour.ops.aligned import aligned
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import Pattern
from ajour.terms.row_table import RowEntry

_FLOATS = {"bfloat16": "bfloat16", "float16": "float16"}


def _prepack(matrix: NMMatrix, config: str) -> list[Tensor]:
    values, positions = matrix.tensors().values()
    layout = native.Sm90Metadata(*matrix.shape)
    metadata = positions.new_empty(layout.bytes)
    packer("pack_sm90_metadata", metadata)(layout, positions.data_ptr(), metadata.data_ptr())
    return [aligned(values), metadata]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    (values, metadata), (n, k) = packed, shape
    layout = native.Sm90Metadata(n, k)
    positions = metadata.new_empty(n, k // 8)
    packer("unpack_sm90_metadata", metadata)(layout, metadata.data_ptr(), positions.data_ptr())
    return NMMatrix({"values": values, "positions": positions}, pattern, shape)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    return sm90.launch(x, None, packed, bias, residual, activation, entry, _FLOATS)


KERNEL = Kernel(
    name="cuda_sm90",
    packing="nm_sm90",
    why_not=partial(sm90.why_not, floats=_FLOATS),
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=partial(sm90.configs, floats=_FLOATS),
    check=partial(sm90.check, floats=_FLOATS),
)
