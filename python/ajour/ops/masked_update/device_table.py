"""An update's table where a GPU's kernels read it, uploaded only when it changes: a captured step uploads nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.ops.masked_update.rows import chunks, rows
from ajour.ops.masked_update.update import Update
from ajour.terms.errors import KernelError


def on_device(update: Update) -> tuple[Tensor, Tensor, Tensor]:
    """(rows: int64 [slices, 11], chunk_rows: int32 [chunks], coefficients: float32 [slices, 9]) on the device.

    Raises KernelError in a graph capture if a tensor has moved since the last step, as gradients do that are set to
    None in between.
    """
    device = update.slices[0].weight.device
    table = rows(update.slices, update.grads) if update.table is None else update.table
    key = update.rule, update.dtype, device, update.slices[0].master is None
    before = update.uploaded.get(key)
    if before is None or not torch.equal(before[0], table):
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise KernelError(
                "tensors have moved since the last step, so it can't be captured in a graph: take one step before, and "
                "keep gradients in place with zero_grad(set_to_none=False)"
            )
        counts = torch.tensor([chunks(piece) for piece in update.slices])
        chunk_rows = torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int32), counts)
        before = update.uploaded[key] = (table.clone(), table.to(device), chunk_rows.to(device))
    coefficients = update.coefficients.to(torch.float32).to(device, non_blocking=True).contiguous()
    return before[1], before[2], coefficients
