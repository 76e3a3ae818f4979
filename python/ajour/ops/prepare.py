"""From a matrix and named kernels to what an op call takes, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.memory import HOST
from ajour.ops.library import LinearOp
from ajour.terms.row_table import make_row_table, parse_row_table

Choice = tuple[int | None, str, str]  # largest number of rows or None, kernel, config

# packed orders that no config changes
_CONFIG_FREE = (
    "canonical",
    "scheduled",
    "dense",
    "nm_slabs",
    "nm_sm90",
    "scaled_nm_sm90",
    "bitmap_slabs",
    "cusparselt",
)


def prepare(op: LinearOp, matrix: SparseMatrix, choices: Sequence[Choice]) -> tuple[list[Tensor], str]:
    """The packed tensors and the row table that serve `choices`; kernels that read one packed order share it.

    Raises KernelError for an unknown kernel, PlanError unless the limits rise and end with None.
    """
    n, k = matrix.shape
    packed: list[Tensor] = []
    spans: dict[tuple[str, str], tuple[int, int]] = {}
    entries = []
    for limit, name, config in choices:
        kernel = op.kernel(name)
        key = (kernel.packing, "" if kernel.packing in _CONFIG_FREE else config)
        if key not in spans:
            with torch.device(HOST):  # _C writes what it packs: torch.set_default_device may say otherwise
                tensors = kernel.prepack(matrix, config)
            spans[key] = (len(packed), len(packed) + len(tensors))
            packed.extend(tensors)
        entries.append((limit, name, *spans[key], config))
    dtype = str(matrix.dtype).removeprefix("torch.")
    return packed, str(make_row_table(n, k, dtype, matrix.pattern, entries))


def restore(op: LinearOp, packed: Sequence[Tensor], kernels: str) -> SparseMatrix:
    """The matrix that `prepare` was given, bit for bit, from the first entry's packed tensors."""
    table = parse_row_table(kernels)
    entry = table.entries[0]
    tensors = packed[entry.start : entry.stop]
    with torch.device(HOST):
        matrix: SparseMatrix = op.kernel(entry.kernel).unpack(tensors, table.pattern, (table.n, table.k))
    return matrix
