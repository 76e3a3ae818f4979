"""Launch: the parameters that one call of a kernel updates, and the table it reads, which stand while tensors stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ajour.ops.masked_update.rows import rows
from ajour.ops.masked_update.update import STATES, Slice, UpdateKernel
from ajour.terms.errors import KernelError
from ajour.train.held import Held

_NOTHING = torch.empty(0, device="cpu")


@dataclass(eq=False)
class Part:
    """The parameters of one group in a launch. steps: float32 [parameters], whose elements their states share."""

    group: Mapping[str, Any]
    states: list[dict[str, Any]]
    steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """One tensor counts all steps: adding to each state's own takes 0.2 ms for 168 of them on a Zen 5 thread."""
        self.steps = torch.stack([state["step"] for state in self.states])
        for state, step in zip(self.states, self.steps.unbind(), strict=True):
            state["step"] = step

    def advance(self, found_inf: Tensor | None) -> Tensor:
        """Counts one step, none where found_inf is not zero; float64 [parameters], the steps after it."""
        self.steps.add_(1.0)
        if found_inf is not None and found_inf.device == self.steps.device:
            self.steps.sub_((found_inf != 0).float().reshape(()))
        return self.steps.double()


class Launch:
    """Parameters of one device and dtype that one call of a kernel updates.

    Its table is made once, and again only when a weight or state has moved, which `stands` tells; gradients may move
    with every step.
    """

    def __init__(self, kernel: UpdateKernel, rule: str, held: Sequence[Held], parts: Sequence[Part]) -> None:
        """held: in the order of the parts' states, which have all their tensors."""
        self.kernel, self.rule, self.held, self.parts = kernel, rule, held, parts
        self._states = [state for part in parts for state in part.states]
        self._names = [name for name in ("step", "master", *STATES[rule]) if name in self._states[0]]
        self.slices = [self._slice(h, state) for h, state in zip(held, self._states, strict=True)]
        self.master = self.slices[0].master is not None
        self.dtype = self.slices[0].weight.dtype
        self.table = rows(self.slices)
        self._addresses = self._found()

    def stands(self) -> bool:
        """Whether all weights and states are where they were; a weight that isn't contiguous never counts as such."""
        return all(h.here().is_contiguous() for h in self.held) and self._found() == self._addresses

    def take_gradients(self) -> None:
        """Lets the slices and the table have the gradients of this step."""
        for held, piece in zip(self.held, self.slices, strict=True):
            piece.grad = held.gradient()
        addresses = [piece.grad.data_ptr() for piece in self.slices]
        self.table[:, 1] = torch.tensor(addresses, device="cpu")

    def finish(self) -> None:
        """Lets go of the gradients, and copies weights back that the kernel couldn't update in place."""
        for held, piece in zip(self.held, self.slices, strict=True):
            piece.grad = _NOTHING
            if not held.here().is_contiguous():
                held.local.copy_(piece.weight.view(held.local.shape))
        torch.autograd.graph.increment_version([held.here() for held in self.held])  # a graph that needs them can tell

    def _found(self) -> list[int]:
        """Addresses. What they pointed to is held here, so that nothing else can take its place."""
        found = [h.here().data_ptr() for h in self.held]
        for state in self._states:
            for name in self._names:
                found.append(state[name].data_ptr() if name in state else 0)
        return found

    def _slice(self, held: Held, state: Mapping[str, Any]) -> Slice:
        """The parameter as a kernel reads it, but for the gradient."""
        names = STATES[self.rule]
        for name in names:
            if name not in state:
                raise KernelError(f"the state of {held.name!r} lacks {name}, which {self.rule} needs")
        for name in self._names[1:]:
            if (found := state[name].numel()) != held.stored_entries:
                raise KernelError(f"{name} of {held.name!r} has {found} entries, expected {held.stored_entries}")
        master = state["master"].view(-1) if "master" in state else None
        states = tuple(state[name].view(-1) for name in names)
        offsets = held.offsets if names or master is not None else None
        weight = held.local.contiguous().view(-1)
        return Slice(weight, _NOTHING, held.bits, offsets, states, master, held.seed)
