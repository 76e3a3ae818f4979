"""masked_adamw and masked_sgd on the CPU, in C++: every parameter of a launch in one pass over memory."""

from __future__ import annotations

import torch

from ajour._native import native
from ajour.ops.masked_update.rows import DTYPES, rows
from ajour.ops.masked_update.update import CHUNK, RULES, Update, UpdateKernel

assert native.UPDATE_CHUNK == CHUNK


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Refuses other devices, and float64."""
    if device != "cpu":
        return f"it runs on the CPU, these parameters are on {device}"
    return None if dtype in DTYPES else f"it takes {', '.join(map(str, DTYPES))}"


def run(update: Update) -> None:
    """Performs the update in place."""
    if update.found_inf is not None and bool(update.found_inf):
        return
    table = rows(update.slices, update.grads) if update.table is None else update.table
    coefficients = update.coefficients.float().contiguous()
    scale = 1.0 if update.grad_scale is None else float(update.grad_scale)
    native.masked_update(
        table.data_ptr(), len(update.slices), coefficients.data_ptr(), RULES.index(update.rule),
        DTYPES.index(update.dtype), update.slices[0].master is not None, update.stochastic, scale,
    )  # fmt: skip


KERNEL = UpdateKernel("cpu", why_not, run)
