"""An update: what one launch of an optimizer's kernel reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ajour.terms.errors import KernelError

CHUNK = 4096  # entries that are one piece of work, as in layout/update_table.h
RULES = ("adamw", "amsgrad", "sgd", "momentum")  # in the order of cpu/masked_update.h
STATES = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "sgd": (),
    "momentum": ("momentum_buffer",),
}
# by column of `Update.coefficients`; what each is stands in layout/update_table.h
ADAMW = ("sign", "decay", "blend1", "beta2", "blend2", "correction2", "eps", "rate", "step")
SGD = ("sign", "decay", "momentum", "gain", "nesterov", "unused", "unused", "rate", "step")


@dataclass(eq=False)
class Slice:
    """One parameter, flat and contiguous, and what stays with it from one step to the next.

    weight: [numel]. bits: uint8 [ceil(numel / 8)], 1 is kept, or None, which keeps all.
    offsets:      None where states and master are [numel]; else they are [kept], and offsets: int64 [chunks] says how
                  many kept entries come before each CHUNK.
    states:       float32 (float64 for float64 weights), in the order of STATES. master: the weight in float32, or None.
    seed:         of this parameter's stochastic rounding, 32 bits.
    """

    weight: Tensor
    bits: Tensor | None
    offsets: Tensor | None
    states: tuple[Tensor, ...]
    master: Tensor | None
    seed: int = 0


@dataclass(frozen=True)
class Update:
    """slices: of one device and dtype, all with or all without a master. grads: of each, contiguous, of numel elements
    of that dtype. coefficients: float64 [slices, 9], on the device or, for a GPU, on the CPU too.

    stochastic: round bfloat16 weights without a master up or down at random. The gradient counts as grad / grad_scale,
    and nothing happens where found_inf is not zero (both one float32 on the device, or None). uploaded: where a GPU's
    kernels keep their table from one step to the next; the optimizer's. table: `rows` of these, if made already.
    """

    rule: str
    slices: Sequence[Slice]
    grads: Sequence[Tensor]
    coefficients: Tensor
    stochastic: bool = False
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    uploaded: dict[Any, Any] = field(default_factory=dict)
    table: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.slices[0].weight.dtype


@dataclass(frozen=True)
class UpdateKernel:
    """How an update is computed on one kind of device.

    why_not: (device type, dtype of the weights) -> None if the kernel takes them, else the reason in one sentence.
    run:     performs an Update in place.
    """

    name: str
    why_not: Callable[[str, torch.dtype], str | None]
    run: Callable[[Update], None]


@dataclass(frozen=True)
class UpdateOp:
    """`masked_adamw` or `masked_sgd`, with its kernels by name, the preferred ones first."""

    name: str
    kernels: dict[str, UpdateKernel]

    def choose(self, device: str, dtype: torch.dtype, name: str | None = None) -> UpdateKernel:
        """The named kernel, or the first that takes such weights; KernelError with the reasons. Asked once, when an
        optimizer is built.
        """
        if name is not None and name not in self.kernels:
            raise KernelError(f"{self.name} has no kernel {name!r}; it has {', '.join(self.kernels)}")
        asked = list(self.kernels.values()) if name is None else [self.kernels[name]]
        refusals = []
        for kernel in asked:
            reason = kernel.why_not(device, dtype)
            if reason is None:
                return kernel
            refusals.append(f"{kernel.name}: {reason}")
        raise KernelError(f"{self.name} has no kernel for {dtype} on {device}; " + "; ".join(refusals))


def chunk_offsets(bits: Tensor) -> Tensor:
    """bits: uint8 -> int64 [chunks]: how many bits are set before each CHUNK of them."""
    chunks = -(-bits.numel() * 8 // CHUNK)
    if not chunks:
        return torch.zeros(0, dtype=torch.int64, device=bits.device)
    padded = torch.nn.functional.pad(bits, (0, chunks * CHUNK // 8 - bits.numel()))
    pairs = padded - ((padded >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    counts = ((fours + (fours >> 4)) & 0x0F).view(chunks, -1).sum(1, dtype=torch.int64)
    return counts.cumsum(0) - counts


def flat_kept(bits: Tensor | None, numel: int) -> Tensor | None:
    """bool [numel] from bits, None from None."""
    if bits is None:
        return None
    return torch.stack([(bits >> place) & 1 for place in range(8)], dim=1).view(-1)[:numel].bool()
