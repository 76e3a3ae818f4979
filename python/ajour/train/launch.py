"""Launch: the parameters that one call of a kernel updates, and the table it reads, which stand while tensors stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ajour.ops.masked_update.rows import rows
from ajour.ops.masked_update.update import STATES, Slice, UpdateKernel
from ajour.terms.errors import KernelError
from ajour.train.held import Held

_STRIDED = torch.strided


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
        self._strided = [pair for pair in zip(held, self.slices, strict=True) if not pair[0].here().is_contiguous()]
        self.master = self.slices[0].master is not None
        self.dtype = self.slices[0].weight.dtype
        self._plain = [] if any(h.sharded for h in held) else [h.parameter for h in held]
        self._shapes = [w.shape for w in self._weights()]
        self._tensors = self._stored()
        self.table = rows(self.slices, [piece.weight for piece in self.slices])  # gradients come with every step
        self._addresses = _addresses(self._weights(), self._tensors)

    def stands(self) -> bool:
        """Whether all weights and states are what and where they were; a weight that isn't contiguous never counts as
        such.
        """
        if self._strided:
            return False
        weights, tensors = self._weights(), self._stored()
        return (
            all(map(is_, tensors, self._tensors))
            and [w.shape for w in weights] == self._shapes
            and all(w.is_contiguous() for w in weights)
            and _addresses(weights, tensors) == self._addresses
        )

    def take_gradients(self) -> list[Tensor]:
        """The gradients of this step, which the table knows afterwards; whoever runs the step must hold them."""
        found = [weight.grad for weight in self._plain]
        grads = [
            grad
            for grad, shape in zip(found, self._shapes, strict=False)  # none of sharded weights
            if grad is not None and _is_readable(grad, self.dtype) and grad.shape == shape
        ]
        if len(grads) != len(self.held):
            grads = [held.gradient() for held in self.held]
        self.table[:, 1] = torch.tensor([grad.data_ptr() for grad in grads], device="cpu")
        return grads

    def finish(self) -> None:
        """Copies weights back that the kernel couldn't update in place."""
        for held, piece in self._strided:
            held.local.copy_(piece.weight.view(held.local.shape))
        torch.autograd.graph.increment_version(self._weights())  # a graph that needs them can tell

    def _weights(self) -> list[Tensor]:
        """Lists that stand are what keeps a step short: kernels sweep all else out of the caches."""
        return self._plain or [h.here() for h in self.held]

    def _stored(self) -> list[Tensor | None]:
        """The tensors of all states."""
        return [state.get(name) for state in self._states for name in self._names]

    def _slice(self, held: Held, state: Mapping[str, Any]) -> Slice:
        """The parameter as a kernel reads it, but for the gradient."""
        names = STATES[self.rule]
        for name in names:
            if name not in state:
                raise KernelError(f"the state of {held.name!r} lacks {name}, which {self.rule} needs")
        for name in self._names[1:]:
            held.check_state(name, state[name])
        master = state["master"].view(-1) if "master" in state else None
        states = tuple(state[name].view(-1) for name in names)
        offsets = held.offsets if names or master is not None else None
        weight = held.local.contiguous().view(-1)
        return Slice(weight, held.bits, offsets, states, master, held.seed)


def _addresses(weights: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> list[int]:
    """What they point to is held by whoever keeps these, so that nothing else can take its place."""
    return [w.data_ptr() for w in weights] + [0 if t is None else t.data_ptr() for t in tensors]


def _is_readable(grad: Tensor, dtype: torch.dtype) -> bool:
    """Whether a kernel reads it as it is."""
    return grad.dtype is dtype and grad.layout is _STRIDED and grad.is_contiguous()
