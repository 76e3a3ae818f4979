"""Who looks at a call: a compiler, a tracer, a mode, or a transform."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

is_compiling = torch.compiler.is_compiling
dispatch_modes = torch._C._len_torch_dispatch_stack
tracing_state = torch._C._get_tracing_state
has_transforms = torch._C._are_functorch_transforms_active
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # of torch.autograd.grad(is_grads_batched=True)


def unwatched(x: Tensor) -> bool:
    """Whether nobody looks at calls and x is a plain tensor of the CPU.

    Then an op written in Python may be called past torch's dispatcher, which takes 3 us for it (Zen 5, torch 2.13).
    """
    if is_compiling() or dispatch_modes() or tracing_state() is not None or has_transforms():
        return False
    return x.__class__ is Tensor and x.is_cpu and not _is_batched(x)


def is_transformed(x: Tensor) -> bool:
    """Whether a transform of torch.func, or forward mode, wants operations of torch that it knows."""
    return not is_compiling() and (forward_ad._current_level >= 0 or has_transforms() or _is_batched(x))
