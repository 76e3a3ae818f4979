"""masked_adamw and masked_sgd in CUDA: every parameter of a launch in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour._native import HAS_CUDA, native
from ajour.ops.masked_update.device_table import on_device
from ajour.ops.masked_update.rows import DTYPES
from ajour.ops.masked_update.update import RULES, Update, UpdateKernel


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Refuses other devices, builds without CUDA, and float64."""
    if device != "cuda":
        return f"it runs on CUDA, these parameters are on {device}"
    if not HAS_CUDA:
        return "this ajour was built without CUDA"
    return None if dtype in DTYPES else f"it takes {', '.join(map(str, DTYPES))}"


def run(update: Update) -> None:
    """Performs the update in place, on the device's current stream."""
    table, chunk_rows, coefficients = on_device(update)
    with torch.cuda.device_of(table):
        native.cuda_masked_update(
            table.data_ptr(), chunk_rows.data_ptr(), len(chunk_rows), coefficients.data_ptr(),
            RULES.index(update.rule), DTYPES.index(update.dtype), update.slices[0].master is not None,
            update.stochastic, _address(update.grad_scale), _address(update.found_inf),
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


KERNEL = UpdateKernel("cuda", why_not, run)
