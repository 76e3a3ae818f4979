"""One layer's swap, and how it is undone bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ajour.conversion.fusion import Fusion
from ajour.conversion.origin import empty, fill, is_plain, origin_of
from ajour.layers import Layer, is_conv1d
from ajour.nn import SparseLinear


@dataclass
class Swap:
    """`sparse` takes the place of `layer` in the model; `undo` may come after any failure in `apply`, or before it.

    fusion:   the activation that the layer takes over, or None.
    rebuilds: the sparse layer holds the dense one's own weight, whose memory can go before it is certain that no swap
              fails; without that, the memory goes with this record.
    """

    model: nn.Module
    layer: Layer
    sparse: SparseLinear
    fusion: Fusion | None = None
    rebuilds: bool = False
    _refill: list[Callable[[], None]] = field(default_factory=list)

    def apply(self) -> None:
        """Swaps, and takes memory and gradient from the dense weight."""
        old = self.layer.module
        self.sparse.origin = origin_of(self.layer)
        if is_conv1d(self.sparse.origin.module):  # code that reads it expects its looks
            n, k = self.layer.shape
            vars(self.sparse).update(transposed=True, nf=n, nx=k)
        self.sparse.train(old.training)
        if is_plain(self.layer):
            self._refill.append(_memory_of(old, self.sparse if self.rebuilds else None))
            old._parameters["weight"].grad = None  # type: ignore[union-attr]
            empty(old)
        if self.fusion is not None:
            self.fusion.fold()
        place(self.model, self.layer.name, self.sparse)

    def undo(self) -> None:
        """The model as it was: the same modules and parameters with the same bits."""
        if self.fusion is not None:
            self.fusion.unfold()
        for refill in self._refill:
            refill()
        place(self.model, self.layer.name, self.layer.module)


def place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module at a path; does nothing for the model itself, which has no place."""
    if name:
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._modules[leaf] = module


def _memory_of(module: nn.Module, sparse: SparseLinear | None) -> Callable[[], None]:
    """Remembers the weight, or what a sparse layer does not: which zeros were -0.0 (1 bit each) and its gradient."""
    weight = module._parameters["weight"]
    assert weight is not None
    held, grad = (weight.data if sparse is None else None), weight.grad
    signs = None if sparse is None else _negative_zeros(weight.detach())

    def refill() -> None:
        if held is not None:
            weight.data = held
        elif sparse is not None and weight.dim() != 2:  # it was emptied
            fill(module, sparse.matrix().to_dense())
            if signs is not None:
                _negate(weight.detach(), signs)
        weight.grad = grad

    return refill


def _negative_zeros(w: Tensor) -> Tensor | None:
    """One bit for each place of w, set where it is -0.0; None if there is none."""
    places = (w == 0) & torch.signbit(w)
    if not bool(places.any()):
        return None
    bits = torch.nn.functional.pad(places.flatten().to(torch.uint8), (0, -w.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=w.device)).sum(-1, dtype=torch.uint8)


def _negate(w: Tensor, signs: Tensor) -> None:
    """Turns the zeros of w that `_negative_zeros` marked into -0.0."""
    bits = (signs.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=w.device)) & 1
    w[bits.flatten()[: w.numel()].view(w.shape).bool()] = -0.0
