"""quantize: 2:4 weights rounded to e4m3, in place, because the caller asked for it, and exactly what that loses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import StringIO

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ajour.conversion.converting import bias_of
from ajour.conversion.fast_path import bypassing, switch_off, switch_on
from ajour.conversion.swap import Swap
from ajour.formats import ScaledNMMatrix
from ajour.formats.e4m3 import LARGEST, STILL_ROUNDS
from ajour.layer_choice import LayerChoice, match_layers
from ajour.layers import Layer, find_layers
from ajour.nn import ScaledNMLinear, SparseLinear
from ajour.terms.errors import AjourError, ConversionError

WIDTH = 120
_AT_ONCE = 1 << 20  # weights that stand in float64 at once, in whole rows: 8 MB for each of a few intermediates


@dataclass(frozen=True)
class Loss:
    """What rounding a weight w: [n, k] to ŵ lost, counted over all of it in float64.

    values:         non-zeros of w.
    max_error:      max |w - ŵ|.
    relative_error: max |w - ŵ| / |w| over the non-zeros.
    energy:         sum (w - ŵ)² / sum w², the share of the weight's energy that is error; 0 for a weight of zeros.
    clipped:        non-zeros beyond 464 scales of their row, brought down to 448, the largest e4m3; between 448 and 464
                    that is the nearest value, so it is rounding and is not counted.
    zeroed:         non-zeros too small for their row, which became 0.
    dense_bytes, sparse_bytes: of the dense weight, of the canonical tensors.
    """

    values: int
    max_error: float
    relative_error: float
    energy: float
    clipped: int
    zeroed: int
    dense_bytes: int
    sparse_bytes: int


@dataclass(frozen=True)
class Quantization:
    """The model, the loss of each quantized layer by name, and why each other layer was left as it is."""

    model: nn.Module
    losses: Mapping[str, Loss]
    skipped: Mapping[str, str]

    def to_json(self) -> str:
        """{"losses": {layer: ...}, "skipped": {layer: reason}}."""
        return json.dumps(
            {"losses": {name: asdict(loss) for name, loss in self.losses.items()}, "skipped": dict(self.skipped)},
            indent=2,
        )

    def __str__(self) -> str:
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(7):
            table.add_column(overflow="fold")
        table.add_row("layer", "max error", "relative", "energy lost", "clipped", "became 0", "bytes")
        for name, loss in self.losses.items():
            smaller = f"{loss.dense_bytes} → {loss.sparse_bytes}"
            figures = (f"{loss.max_error:.3g}", f"{loss.relative_error:.2%}", f"{loss.energy:.4%}")
            table.add_row(name, *figures, str(loss.clipped), str(loss.zeroed), smaller)
        out = StringIO()
        Console(file=out, width=WIDTH, color_system=None).print(table)
        lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
        return "\n".join([*lines, *(f"{name}: left as it is: {reason}" for name, reason in self.skipped.items())])


def loss_of(w: Tensor, matrix: ScaledNMMatrix) -> Loss:
    """What the matrix lost of the weight w: [n, k] that it was made from; some rows at a time, so in little memory."""
    n, k = matrix.shape
    values = clipped = zeroed = 0
    max_error = relative_error = energy = lost = 0.0
    step = max(1, _AT_ONCE // max(1, k))
    for first in range(0, n if k else 0, step):
        part = matrix.rows(first, min(n, first + step))
        rounded, scales = part.to_dense().double(), part.tensors()["scales"].double().unsqueeze(1)
        exact = w[first : first + step].double()
        error, live = (exact - rounded).abs(), exact != 0
        values += int(live.sum())
        max_error = max(max_error, float(error.max()))
        relative_error = max(relative_error, float(torch.where(live, error / exact.abs(), 0.0).max()))
        energy += float(exact.square().sum())
        lost += float(error.square().sum())
        clipped += int(((exact.abs() > STILL_ROUNDS * scales) & (rounded.abs() == LARGEST * scales)).sum())
        zeroed += int((live & (rounded == 0)).sum())
    return Loss(
        values=values,
        max_error=max_error,
        relative_error=relative_error,
        energy=lost / energy if energy else 0.0,
        clipped=clipped,
        zeroed=zeroed,
        dense_bytes=w.numel() * w.element_size(),
        sparse_bytes=matrix.nbytes,
    )


def quantize(model: nn.Module, *, layers: LayerChoice | None = None) -> Quantization:
    """Rounds the 2:4 weights of a bfloat16 or float16 model to e4m3, in place: dense layers and converted ones.

    This is the one call of ajour that changes what a model computes, so nothing else makes it: no plan, no conversion.
    Each layer becomes an nn.ScaledNMLinear, which also rounds its input, row by row, in every call. `ajour.revert`
    gives dense layers with the rounded weights.

    layers: a name or glob ("encoder.*"), several of them, or a callable (name, module) -> bool; without it every layer
            that is 2:4. What can't be quantized is skipped, with the reason in the result, unless it was named in full.

    A model that is itself one layer is in `.model` of the result as the new layer. Raises ConversionError for a layer
    that is named and can't be quantized, or if there is none that can; the model is unchanged then.
    """
    named = {layers} if isinstance(layers, str) else set() if layers is None or callable(layers) else set(layers)
    losses: dict[str, Loss] = {}
    skipped: dict[str, str] = {}
    built: list[tuple[Layer, SparseLinear]] = []
    with torch.inference_mode(False), torch.no_grad():
        for layer in match_layers(find_layers(model), layers):
            try:
                matrix, losses[layer.name] = _rounded(layer)
            except AjourError as error:
                if layer.name in named:
                    raise ConversionError(f"layer {layer.name!r} can't be quantized: {error}") from error
                skipped[layer.name] = str(error)
            else:
                built.append((layer, _module(layer, matrix)))
        if not built:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
            raise ConversionError(f"there is nothing to quantize; {reasons or 'the model has no linear layers'}")
        return Quantization(_swapped(model, built), losses, skipped)


def _rounded(layer: Layer) -> tuple[ScaledNMMatrix, Loss]:
    if layer.reason is not None:
        raise ConversionError(layer.reason)
    if isinstance(layer.module, ScaledNMLinear):
        raise ConversionError("it is quantized already")
    w = layer.weight()
    matrix = ScaledNMMatrix.quantize(w)
    return matrix, loss_of(w, matrix)


def _module(layer: Layer, matrix: ScaledNMMatrix) -> SparseLinear:
    activation = layer.module.activation if isinstance(layer.module, SparseLinear) else "none"
    return ScaledNMLinear(matrix, bias_of(layer), activation=activation)


def _swapped(model: nn.Module, built: list[tuple[Layer, SparseLinear]]) -> nn.Module:
    with ExitStack() as undo:
        for layer, sparse in built:
            swap = Swap(model, layer, sparse)
            undo.callback(swap.undo)
            swap.apply()
            model = model if layer.name else sparse
        for module in bypassing(model):
            undo.callback(switch_on, module)
            switch_off(module)
        undo.pop_all()
    return model
