"""Permuted: a linear layer whose in features stand in another order than in x."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ajour.layers import is_conv1d
from ajour.nn.weight import Looks, read_of


class Permuted(nn.Module):
    """y = layer(x[..., order]): the layer's feature i is feature order[i] of x; it may be dense or converted.

    layer: a linear layer of k in features, order: int64 [k], each of 0 .. k - 1 once; a buffer of the state_dict. A
    Conv1D's has `ajour_turned` beside it: its weight is [k, n], which a square one does not show.
    """

    ajour_order: Tensor

    def __init__(self, layer: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("ajour_order", order)
        if is_conv1d(layer):
            self.register_buffer("ajour_turned", order.new_ones(1))
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """layer(x: [..., k], its features put in order)."""
        # index_select takes twice as long for bfloat16, and 3/4 of the time for float32 (512 x 4096, Zen 5)
        y: Tensor = self.layer(x.gather(-1, self.ajour_order.expand(x.shape)))
        return y

    @property
    def weight(self) -> Tensor:
        """The weight in the order of x, for code that reads it, read-only; in the layer's own orientation."""
        side = 0 if is_conv1d(self.layer) or getattr(self.layer, "transposed", False) else 1
        held, order = cast(Tensor, self.layer.weight), self.ajour_order
        if torch.compiler.is_compiling():
            return held.index_select(side, order.argsort())
        looks = Looks((held.shape[0], held.shape[1]), held.dtype, held.device)
        return read_of(self._title, looks, held, lambda w: w.index_select(side, order.argsort()))

    def _title(self) -> str:
        return f"this Permuted ({self.in_features} -> {self.out_features} features)"

    @property
    def bias(self) -> Tensor | None:
        """The layer's."""
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        return bias

    @property
    def in_features(self) -> int:
        """k."""
        return len(self.ajour_order)

    @property
    def out_features(self) -> int:
        """n."""
        return int(getattr(self.layer, "nf", getattr(self.layer, "out_features", 0)))  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Of how many features the order is."""
        return f"{self.in_features} in features in another order"
