"""A whole training step of one layer, y, dx, dw and the optimizer's: what each way to hold its zeros costs.

plain is an nn.Linear under a compact MaskedAdamW: dense products. masked is a MaskedLinear, by the products that
measure fastest. converted is a trainable layer of the format, whose optimizer sees kept values alone: blocks have
products of their own, N:M and bitmap are expanded for y and dx, and their gradient is gathered from a dense one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ajour.formats.bitmap import BitmapMatrix
from ajour.formats.block import BlockMatrix
from ajour.formats.matrix import SparseMatrix
from ajour.formats.nm import NMMatrix
from ajour.nn import linear_of
from ajour.nn.linear import SparseLinear
from ajour.planning.correctness import Oracle
from ajour.planning.timing import Side, Timer, Timing, differ, measure
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.terms.row_table import parse_row_table
from ajour.train import Mask, MaskedAdamW, MaskedLinear, mask_linears

Row = dict[str, Any]
OPTIONS: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.01}
WAYS = ("plain", "masked", "converted")


@dataclass(frozen=True)
class Shape:
    """A layer and the rows of x in a training step."""

    name: str
    m: int
    n: int
    k: int


SHAPE = Shape("BERT-base up", 512, 3072, 768)
SMOKE = Shape("smoke", 8, 64, 32)


class Work:
    """A weight [n, k] with zeros, x: [m, k] and dy: [m, n]."""

    def __init__(self, shape: Shape, kept: Tensor, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(3)
        w = torch.randn(shape.n, shape.k, generator=generator).to(kept.device, dtype) / 16
        self.shape, self.kept, self.w = shape, kept & (w != 0), torch.where(kept, w, 0.0)  # a few are drawn as zero
        self.x = torch.randn(shape.m, shape.k, generator=generator).to(kept.device, dtype).requires_grad_()
        self.dy = torch.randn(shape.m, shape.n, generator=generator).to(kept.device, dtype)

    def linear(self) -> nn.Linear:
        """A dense layer of this weight, its own."""
        layer = nn.Linear(self.shape.k, self.shape.n, bias=False, device=self.w.device, dtype=self.w.dtype)
        with torch.no_grad():
            layer.weight.copy_(self.w)
        return layer

    def products(self, layer: nn.Module) -> tuple[Tensor, Tensor]:
        """y and dx; the gradient of the weight is in its parameter afterwards."""
        self.x.grad = None
        layer.zero_grad()
        y = layer(self.x)
        y.backward(self.dy)
        assert self.x.grad is not None
        return y, self.x.grad

    def step(self, layer: nn.Module, update: Callable[[], object]) -> Callable[[], object]:
        """One training step."""

        def once() -> None:
            self.products(layer)
            update()

        return once

    def error_ratio(self, layer: nn.Module) -> float:
        """The largest of y, dx and the kept entries of dw, before any step."""
        y, dx = self.products(layer)
        x, dy = self.x.detach(), self.dy
        oracles = Oracle.of(x, self.w, None), Oracle.of(dy, self.w.t(), None), Oracle.of(dy.t(), x.t(), None)
        dw = torch.where(self.kept, _dense_gradient(layer), oracles[2].dense)
        return max(o.error_ratio(found) for o, found in zip(oracles, (y.detach(), dx, dw), strict=True))


def layer_rows(
    shape: Shape, pattern: Pattern, kept: Tensor, dtype: torch.dtype, timer: Timer, seconds: float
) -> list[Row]:
    """One row for each way; kept: bool [n, k]. All take turns with torch's own layer under a float mask."""
    work = Work(shape, kept, dtype)
    layers = {way: _layer(way, work, pattern) for way in WAYS}
    ratios = {way: work.error_ratio(layer) for way, layer in layers.items()}
    rivals = [Side("aten", [_under_float_mask(work, work.linear())])]
    everything = Mask.from_dense(torch.ones_like(kept))
    if "onednn" in MaskedLinear(work.linear(), everything).possible_products():
        dense = MaskedLinear(work.linear(), everything, products="onednn")
        rivals.append(Side("onednn", [_under_float_mask(work, dense)]))
    mine = [Side(way, [work.step(layer, _optimizer(way, layer, work).step)]) for way, layer in layers.items()]
    timings = measure([*rivals, *mine], timer, seconds=seconds, give_up=False)
    best = min(range(len(rivals)), key=lambda i: timings[i].best)
    described = {"dense_kernel": rivals[best].name, "today_us": round(timings[0].best, 3)}
    return [
        _row(work, pattern, way, layers[way], timing, timings[best], ratios[way]) | described
        for way, timing in zip(WAYS, timings[len(rivals) :], strict=True)
    ]


def _layer(way: str, work: Work, pattern: Pattern) -> nn.Module:
    if way == "converted":
        kinds: dict[type, type[SparseMatrix]] = {NM: NMMatrix, Block: BlockMatrix}
        matrix = kinds.get(type(pattern), BitmapMatrix).from_dense(work.w, pattern)
        return linear_of(matrix, trainable=True)
    layer = work.linear()
    if way == "plain":
        return layer
    model, units = nn.Sequential(layer), pattern if isinstance(pattern, Block) else Unstructured()
    return mask_linears(model, {"0.weight": Mask.from_dense(work.kept)}, units, rows=work.shape.m).get_submodule("0")


def _optimizer(way: str, layer: nn.Module, work: Work) -> torch.optim.Optimizer:
    if way == "converted":
        return MaskedAdamW(layer.named_parameters(), **OPTIONS)
    return MaskedAdamW(layer.named_parameters(), {"weight": Mask.from_dense(work.kept)}, storage="compact", **OPTIONS)


def _under_float_mask(work: Work, layer: nn.Linear) -> Callable[[], object]:
    """What people write today: gradient and weight times a float mask around torch's fused step."""
    optimizer = torch.optim.AdamW([layer.weight], fused=True, **OPTIONS)
    mask, weight = work.kept.to(work.w.dtype), layer.weight.detach()

    def update() -> None:
        assert layer.weight.grad is not None
        layer.weight.grad.mul_(mask)
        optimizer.step()
        weight.mul_(mask)

    return work.step(layer, update)


def _dense_gradient(layer: nn.Module) -> Tensor:
    """[n, k], whatever form the layer's values have."""
    if not isinstance(layer, SparseLinear):
        assert isinstance(layer, nn.Linear)
        assert layer.weight.grad is not None
        return layer.weight.grad
    tensors = layer.matrix().tensors()
    values = layer.get_parameter(next(iter(tensors)))
    assert values.grad is not None
    shape = layer.out_features, layer.in_features
    return type(layer.matrix())({**tensors, next(iter(tensors)): values.grad}, layer.pattern, shape).to_dense()


def _row(
    work: Work, pattern: Pattern, way: str, layer: nn.Module, mine: Timing, theirs: Timing, error_ratio: float
) -> Row:
    shape = work.shape
    sparse = isinstance(layer, SparseLinear)
    kernel = parse_row_table(layer.kernels).entries[0].kernel if sparse else getattr(layer, "products", "dense")
    return {
        "op": "layer_step",
        "pattern": str(pattern),
        "density": round(float(work.kept.float().mean()), 4),
        "mask": "random",
        "kernel": kernel,
        "config": way,
        "m": shape.m,
        "n": shape.n,
        "k": shape.k,
        "dtype": str(work.w.dtype).removeprefix("torch."),
        "mode": "eager",
        "dense_us": round(theirs.best, 3),
        "sparse_us": round(mine.worst, 3),
        "spread": round(max(mine.spread, theirs.spread), 3),
        "speedup": round(theirs.best / mine.worst, 3) if error_ratio <= 1 else None,
        "steady": mine.steady and theirs.steady,
        "no_difference": not differ(mine, theirs),
        "error_ratio": round(error_ratio, 3),
        "shape": shape.name,
        "threads": torch.get_num_threads(),
    }
