"""From a matrix and named kernels to what an op call takes, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.formats.matrix import SparseMatrix
from ajour.memory import HOST
from ajour.ops.library import LinearOp
from ajour.terms.kernel import Kernel
from ajour.terms.row_table import make_row_table, parse_row_table

Choice = tuple[int | None, str, str]  # largest number of rows or None, kernel, config

# packed orders that no config changes
_CONFIG_FREE = (
    "canonical", "scheduled", "dense", "cpu_split", "nm_slabs", "nm_sm90", "scaled_nm_sm90", "bitmap_slabs", "gap_rows",
    "cusparselt",
)  # fmt: skip


def packed_form(kernel: Kernel, config: str) -> tuple[str, str]:
    """What two choices must agree in to share their packed tensors: the order, and the config where it matters."""
    return kernel.packing, "" if kernel.packing in _CONFIG_FREE else config


def prepare(
    op: LinearOp,
    matrix: SparseMatrix,
    choices: Sequence[Choice],
    known: dict[tuple[str, str], list[Tensor]] | None = None,
) -> tuple[list[Tensor], str]:
    """The packed tensors and the row table that serve `choices`; kernels that read one packed order share it.

    `known` holds packed forms of this matrix that stand already; those that are packed here join it. Raises KernelError
    for an unknown kernel, PlanError unless the limits rise and end with None.
    """
    known = {} if known is None else known
    n, k = matrix.shape
    packed: list[Tensor] = []
    spans: dict[tuple[str, str], tuple[int, int]] = {}
    entries = []
    for limit, name, config in choices:
        kernel = op.kernel(name)
        form = packed_form(kernel, config)
        if form not in known:
            with torch.device(HOST):  # _C writes what it packs: torch.set_default_device may say otherwise
                known[form] = kernel.prepack(matrix, config)
        if form not in spans:
            spans[form] = (len(packed), len(packed) + len(known[form]))
            packed.extend(known[form])
        entries.append((limit, name, *spans[form], config))
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
