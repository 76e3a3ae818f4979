"""Tensors as memory: what the compiled part can read, and what a model holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ajour._native import native

HOST = torch.device("cpu")  # said at every allocation that _C writes to: torch.set_default_device may say otherwise
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # of weights


def why_unreadable(t: Tensor) -> str | None:
    """None if t owns plain memory with its values, else what it is instead, to end a sentence."""
    if t.layout != torch.strided:
        return f"has the layout {t.layout}; make it a plain one with .to_dense()"
    if t.is_meta:
        return "is on the meta device, without values; load them first"
    if type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"is a {type(t).__name__}, whose values are kept elsewhere; make it a plain tensor"
    return None


def on_host(t: Tensor) -> Tensor:
    """t itself where it can be: on the CPU, contiguous, aligned to its elements, without a graph; else a copy."""
    t = t.detach().cpu().contiguous()
    return t.clone() if t.data_ptr() % t.element_size() else t


def stream_of(device: int) -> int:
    """The current stream of a CUDA device, as its address."""
    address: int = torch._C._cuda_getCurrentRawStream(device)
    return address


def view(w: Tensor) -> Any:
    """A WeightView of w: [n, k], which must be on the host and outlive it."""
    return native.WeightView(w.data_ptr(), w.shape[0], w.shape[1], w.element_size())


def resident_bytes(model: nn.Module) -> int:
    """Of the distinct memory of all parameters and buffers; what is on the meta device has none."""
    tensors = [*model.parameters(), *model.buffers()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    return sum(held.values())
