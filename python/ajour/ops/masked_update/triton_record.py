"""The record of the Triton kernel: it exists without Triton, whose module is imported when an update runs."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch

from ajour.ops.masked_update.rows import DTYPES
from ajour.ops.masked_update.update import Update, UpdateKernel


def why_not(device: str, dtype: torch.dtype) -> str | None:
    """Refuses other devices, machines without Triton, and float64."""
    if device != "cuda":
        return f"Triton kernels run on CUDA, these parameters are on {device}"
    if find_spec("triton") is None:
        return "Triton is not installed; the extra ajour[triton] brings it"
    return None if dtype in DTYPES else f"it takes {', '.join(map(str, DTYPES))}"


def run(update: Update) -> None:
    """Performs the update in place."""
    import_module("ajour.ops.masked_update.triton_kernel").run(update)


KERNEL = UpdateKernel("triton", why_not, run)
