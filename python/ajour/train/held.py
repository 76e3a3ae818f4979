"""Held: what an optimizer knows of one parameter, and how its state moves between storages and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ajour.ops.masked_update.update import Slice, UpdateKernel, chunk_offsets, flat_kept
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
        self.sliced: Sliced | None = None
        self.seed = (seed ^ _shard(parameter) * 0x9E3779B1) & 0xFFFFFFFF
        if mask is not None:
            self.take(mask)

    @property
    def local(self) -> Tensor:
        """What of the parameter lies in this process, without a graph."""
        return local(self.parameter)

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
            return dense.clone()
        flat = dense.reshape(-1)
        return flat[kept] if self.offsets is not None else torch.where(kept, flat, 0.0).view(dense.shape)

    def as_dense(self, stored: Tensor) -> Tensor:
        """The inverse of `as_stored`."""
        return spread(stored, self.bits, self.local.shape)


@dataclass(frozen=True)
class Sliced:
    """A parameter as the last step's kernel read it, and the tensors that this was made of."""

    stored: list[Tensor | None]
    slice: Slice

    def same(self, weight: Tensor, stored: list[Tensor | None]) -> bool:
        """Whether it still stands: the weight in the same place (a copy never is) and the very same tensors."""
        moved = weight.data_ptr() != self.slice.weight.data_ptr() or len(stored) != len(self.stored)
        return not moved and all(a is b for a, b in zip(stored, self.stored, strict=True))


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
