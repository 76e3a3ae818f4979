"""Held: what an optimizer knows of one parameter, and how its state moves between storages and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ajour.ops.masked_update.update import STATES, UpdateKernel, chunk_offsets, flat_kept
from ajour.terms.errors import KernelError
from ajour.train.mask import Mask
from ajour.train.masks import check_shape
from ajour.train.readers import readers
from ajour.train.units import live_units

STORAGES = ("dense", "compact")
LATE = ("momentum_buffer",)


class Held:
    """One parameter under an optimizer.

    mask: of the whole parameter, or None, which keeps all of it; `take` brings it. part: of what lies in this process,
    which is less only where FSDP shards the parameter. offsets: where each chunk's kept entries begin, for compact
    states.
    """

    def __init__(
        self, name: str, parameter: Tensor, kernel: UpdateKernel, *, compact: bool, master: bool,
        capturable: bool, seed: int,
    ) -> None:  # fmt: skip
        self.name, self.parameter, self.kernel = name, parameter, kernel
        self.compact, self.master, self.capturable = compact, master, capturable
        self.mask: Mask | None = None
        self.part: Mask | None = None
        self.offsets: Tensor | None = None
        self.sharded = hasattr(parameter, "to_local")  # a DTensor, without importing torch.distributed
        self.seed = (seed ^ _shard(parameter) * 0x9E3779B1) & 0xFFFFFFFF
        self._kind = self._now()
        self._cleared: tuple[int, int] | None = None

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
        if grad.shape != self.parameter.shape:
            wanted = tuple(self.parameter.shape)
            raise KernelError(f"{self.name!r} has a gradient {tuple(grad.shape)}; expected {wanted}, as the weight is")
        return (local(grad) if self.sharded else grad).contiguous()

    @property
    def bits(self) -> Tensor | None:
        """Of what lies in this process."""
        return None if self.part is None else self.part.bits

    def check_state(self, name: str, found: Tensor) -> None:
        """KernelError by name for a moment or master that a kernel can't take for one of this parameter."""
        entries, dtype = self.stored_entries, torch.promote_types(self.local.dtype, torch.float32)
        if found.numel() != entries:
            raise KernelError(f"{name} of {self.name!r} has {found.numel()} entries, expected {entries}")
        if found.dtype != dtype or found.device != self.local.device or not found.is_contiguous():
            kind = "" if found.is_contiguous() else " that is not contiguous"
            raise KernelError(
                f"{name} of {self.name!r} is {found.dtype} on {found.device}{kind}; expected {dtype} on "
                f"{self.local.device}, contiguous: give it back as it was, or load a state_dict"
            )

    def moved(self, mask: Mask | None) -> bool:
        """Whether this is another mask, or the parameter is on another device, of another dtype or shape by now."""
        return mask is not self.mask or self._kind != self._now()

    def check(self, mask: Mask) -> None:
        """PatternError by name for a mask of another shape, or one that a layer which reads the parameter refuses."""
        check_shape(self.name, mask, self.parameter)
        for layer in readers(self.parameter):
            live_units(mask.dense(), layer.pattern, self.name)

    @torch.no_grad()
    def take(self, mask: Mask | None) -> None:
        """Holds the parameter under this mask from now on, and sets what it doesn't keep to +0.0.

        A MaskedLinear that reads the parameter has the mask from now on, too.
        """
        self.mask, self._kind = mask, self._now()
        if mask is not None:
            self.part = local_part(mask, self.parameter).to(self.local.device)
            self.offsets = chunk_offsets(self.part.bits) if self.compact else None
            self.clear()
            for layer in readers(self.parameter):
                layer.follow(mask)

    def clear(self) -> None:
        """Sets what the mask doesn't keep to +0.0."""
        if self.part is not None:
            self.part.apply_(self.local)
            self._cleared = self._edits()

    def restore(self) -> None:
        """The same in a step that leaves the parameter alone: a frozen one is cleared if torch counted an edit of it,
        as going through all of its weights would make every step pay for them.
        """
        if self.parameter.requires_grad or self._cleared != self._edits():
            self.clear()

    def check_shape(self, has_state: bool) -> None:
        """KernelError by name for a parameter whose state is of another shape."""
        before, now = self._kind[2], self.parameter.shape
        if has_state and now != before:
            raise KernelError(
                f"{self.name!r} is {tuple(now)} by now, its state is of {tuple(before)}; make a new optimizer for it"
            )

    def _now(self) -> tuple[torch.device, torch.dtype, torch.Size]:
        return self.parameter.device, self.parameter.dtype, self.parameter.shape

    def _edits(self) -> tuple[int, int]:
        w = self.local
        return w.data_ptr(), 0 if w.is_inference() else w._version

    @property
    def stored_entries(self) -> int:
        """Of a moment."""
        return self.local.numel() if self.offsets is None or self.part is None else self.part.kept

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

    def dense_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state's step, and its moments and master in the parameter's own shape."""
        return {
            name: stored if name == "step" else self.as_dense(stored)
            for name, stored in state.items()
            if name != "mask"
        }

    def stored_state(self, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `dense_state`, as this storage has it, with or without a master; of nothing the mask alone."""
        w, state = self.local, {}
        precise = torch.promote_types(w.dtype, torch.float32)
        for name, moment in dense.items():
            if name == "step":
                state[name] = moment.to(w.device if self.capturable else "cpu", copy=True)
            elif name != "master":
                state[name] = self.as_stored(moment.to(w.device, precise))
        if state and self.master and w.dtype != precise:
            state["master"] = self.as_stored(dense.get("master", w).to(w.device, precise))
        return state if self.bits is None else state | {"mask": self.bits}

    def begin(self, state: dict[str, Tensor], rule: str) -> None:
        """Begins the state that a rule needs. A momentum may begin late, as torch's does, and its first gradient isn't
        dampened, either: its steps are counted from there.
        """
        missing = [name for name in STATES[rule] if name not in state]
        if "step" in state and not set(missing) & set(LATE):
            return
        w = self.local
        precise = torch.promote_types(w.dtype, torch.float32)
        nothing = torch.zeros_like(w, dtype=precise, memory_format=torch.contiguous_format)
        dense = {"step": torch.zeros(()), **dict.fromkeys(missing, nothing)}
        state |= self.stored_state(self.dense_state(state) | dense)


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
