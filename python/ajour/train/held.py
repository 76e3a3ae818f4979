"""Held: what an optimizer knows of one parameter, and how its state moves between storages and masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ajour.ops.masked_update.update import UpdateKernel, chunk_offsets, flat_kept
from ajour.terms.errors import KernelError
from ajour.train.mask import Mask

STORAGES = ("dense", "compact")


class Held:
    """One parameter under an optimizer.

    mask: of the whole parameter, or None, which keeps all of it. part: of what lies in this process, which is less only
    where FSDP shards the parameter. offsets: where each chunk's kept entries begin, for compact states.
    """

    def __init__(
        self, name: str, parameter: Tensor, mask: Mask | None, kernel: UpdateKernel, *, compact: bool, seed: int
    ) -> None:
        self.name, self.parameter, self.kernel, self.compact = name, parameter, kernel, compact
        self.mask: Mask | None = None
        self.part: Mask | None = None
        self.offsets: Tensor | None = None
        self.sharded = hasattr(parameter, "to_local")  # a DTensor, without importing torch.distributed
        self.seed = (seed ^ _shard(parameter) * 0x9E3779B1) & 0xFFFFFFFF
        if mask is not None:
            self.take(mask)

    @property
    def local(self) -> Tensor:
        """What of the parameter lies in this process, without a graph."""
        return local(self.parameter)

    def here(self) -> Tensor:
        """The same, with a graph: asked in every step, where detaching costs more than all else."""
        return self.local if self.sharded else self.parameter

    def gradient(self) -> Tensor:
        """What of the gradient lies in this process, contiguous; KernelError by name if a kernel can't read it."""
        grad = self.parameter.grad
        assert grad is not None
        if grad.layout is not torch.strided:
            raise KernelError(f"{self.name!r} has a gradient of layout {grad.layout}; expected a plain one")
        if grad.dtype is not self.parameter.dtype:
            expected = self.parameter.dtype
            raise KernelError(f"{self.name!r} has a gradient of {grad.dtype}; expected {expected}, as the weight is")
        return (local(grad) if self.sharded else grad).contiguous()

    @property
    def bits(self) -> Tensor | None:
        """Of what lies in this process."""
        return None if self.part is None else self.part.bits

    @torch.no_grad()
    def take(self, mask: Mask) -> None:
        """Holds the parameter under this mask from now on, and sets what it doesn't keep to +0.0."""
        self.mask = mask
        self.part = local_part(mask, self.parameter).to(self.local.device)
        self.offsets = chunk_offsets(self.part.bits) if self.compact else None
        self.part.apply_(self.local)

    def state_shape(self) -> torch.Size:
        """Of a moment."""
        if self.part is None or self.offsets is None:
            return self.local.shape
        return torch.Size([self.part.kept])

    def as_stored(self, dense: Tensor) -> Tensor:
        """A moment of the parameter's shape, as this storage has it; zero where the mask is."""
        kept = flat_kept(self.bits, dense.numel())
        if kept is None:
            return dense.clone(memory_format=torch.contiguous_format)  # kernels read it as rows
        flat = dense.reshape(-1)
        return flat[kept] if self.offsets is not None else torch.where(kept, flat, 0.0).view(dense.shape)

    def as_dense(self, stored: Tensor) -> Tensor:
        """The inverse of `as_stored`."""
        return spread(stored, self.bits, self.local.shape)


def spread(stored: Tensor, bits: Tensor | None, shape: torch.Size) -> Tensor:
    """A moment of `shape` from one of kept entries alone; one of `shape` already stays as it is."""
    if stored.shape == shape or bits is None:
        return stored.view(shape)
    dense = stored.new_zeros(shape.numel())
    kept = flat_kept(bits, shape.numel())
    assert kept is not None
    dense[kept] = stored
    return dense.view(shape)


def _shard(parameter: Tensor) -> int:
    """Which part of a sharded parameter lies in this process: stochastic rounding differs between them."""
    sharded: Any = parameter
    return int(sharded.device_mesh.get_rank()) if hasattr(sharded, "to_local") else 0


def local(t: Tensor) -> Tensor:
    """What of a (possibly sharded) tensor lies in this process, without a graph."""
    part: Tensor = t.to_local() if hasattr(t, "to_local") else t  # a DTensor, without importing torch.distributed
    return part.detach() if part.requires_grad else part


def local_part(mask: Mask, parameter: Tensor) -> Mask:
    """The mask of what of `parameter` lies in this process."""
    if not hasattr(parameter, "to_local"):
        return mask
    from torch.distributed.tensor import distribute_tensor

    # without a source rank nothing is sent: every process cuts its own part, as the parameter was cut
    whole = mask.dense().view(torch.uint8)
    sharded: Any = parameter
    cut = distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return Mask.from_dense(local(cut).view(torch.bool))
