"""Tensors as memory: what the compiled part can read, and what a model holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ajour._native import HAS_CUDA, native
from ajour.terms.errors import KernelError

HOST = torch.device("cpu")  # said at every allocation that _C writes to: torch.set_default_device may say otherwise
OLDEST_PACKED_ON = (8, 0)  # compute capability; for older cards nothing is compiled
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


def packable(t: Tensor) -> Tensor:
    """t as `packer` takes it: where it lies if this build packs there, else on the host; `on_host` says the rest."""
    if not (t.is_cuda and HAS_CUDA) or torch.cuda.get_device_capability(t.device) < OLDEST_PACKED_ON:
        return on_host(t)
    t = t.detach().contiguous()
    return t.clone() if t.data_ptr() % t.element_size() else t


def packer(name: str, t: Tensor) -> Callable[..., Any]:
    """The compiled function of that name for where t lies; on a GPU it works on the current stream."""
    if not t.is_cuda:
        return getattr(native, name)  # type: ignore[no-any-return]
    launch, device = getattr(native, f"{name}_cuda"), t.get_device()
    return lambda *arguments: launch(*arguments, device, stream_of(device))


def lent(packed: Tensor) -> tuple[int, int]:
    """Where a packed tensor lies, and its bytes: the compiled part refuses fewer than it will read."""
    if not packed.is_contiguous():
        raise KernelError(f"packed tensors are contiguous, found {tuple(packed.shape)} with strides {packed.stride()}")
    return packed.data_ptr(), packed.nbytes


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
