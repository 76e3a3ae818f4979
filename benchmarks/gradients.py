"""Training a block-sparse layer: the gradients of x and of the weight, and a whole step, beside masked dense.

dx and dw are timed as y is, the op alone against the dense kernel alone; what torch's autograd adds to them stands in a
column of its own, and a step goes through autograd as a model's does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import linear

from ajour.detect import detect
from ajour.formats.block import BlockMatrix
from ajour.nn import BlockLinear
from ajour.ops.block_gradients import input_gradient, value_gradient
from ajour.ops.block_linear.reference import expand
from ajour.ops.prepare import Choice
from ajour.planning.candidates import Form, candidates
from ajour.planning.correctness import Oracle
from ajour.planning.measuring import Bench, build, copies, dense_sides
from ajour.planning.timing import Side, measure
from ajour.planning.training import Step
from ajour.terms.pattern import Block
from ajour.terms.row_table import RowEntry, parse_row_table
from benchmarks.cases import Case
from benchmarks.cell import Cell, Row, us

FEWEST_ROWS = 128  # training has many
LEAST_SIDE = 16  # of a block that is trained
AUTOGRAD = {"dx": "dx_by_autograd", "dw": "dw_by_autograd", "step": "step"}  # a product as a training loop asks for it
MOST_LAYERS = 16  # held at once: each keeps its ys, and with many rows the weight is the smallest part


def trained(case: Case, rows: Sequence[int]) -> list[int]:
    """The numbers of rows at which the case's gradients are worth measuring."""
    blocks = isinstance(case.pattern, Block) and min(case.pattern.rows, case.pattern.cols) >= LEAST_SIDE
    return [m for m in rows if m >= FEWEST_ROWS] if blocks and case.mask == "random" else []


def gradient_rows(cell: Cell, dense: Sequence[Tensor], count: int) -> list[Row]:
    """One row each for "dx", "dw" and "step"; dense: cold copies of a weight, count: those of the sparse one."""
    x = cell.subject.inputs(cell.m)
    generator = torch.Generator(x.device).manual_seed(1)
    dy = torch.randn(cell.m, cell.subject.w.shape[0], generator=generator, device=x.device).to(x.dtype)
    choices = planned(cell, count)
    layers = [Layer.of(cell, x, dy, choices) for _ in range(min(count, MOST_LAYERS))]
    first = layers[0]
    expected = {"dx": Oracle.of(first.dy, cell.subject.w.t(), None), "dw": Oracle.of(first.dy.t(), x.t(), None)}
    ratios = {
        "dx": expected["dx"].error_ratio(first.dx()),
        "dw": expected["dw"].error_ratio(first.scattered(first.dw(), expected["dw"].dense)),
    }
    ratios["step"] = max(ratios.values())
    mask = cell.subject.w != 0
    sides = {
        "dx": _dx(first, dense),
        "dw": _dw(first, mask),
        "step": _step(first, dense, mask),
    }
    rows = []
    for product, rivals in sides.items():
        ways = dict.fromkeys((product, AUTOGRAD[product]))
        mine = [Side(way, [getattr(layer, way) for layer in layers]) for way in ways]
        timings = measure([*rivals, *mine], cell.timer, seconds=cell.seconds, give_up=False)
        best = min(range(len(rivals)), key=lambda i: timings[i].best)
        rows.append(
            {
                **cell.described("block_linear", first.entry.kernel, first.entry.config),
                "product": product,
                "dense_us": us(timings[best]),
                "dense_kernel": rivals[best].name,
                "today_us": us(timings[0]),
                "autograd_us": us(timings[-1]),
                **cell.measured(timings[len(rivals)], timings[best], ratios[product], 3 if product == "step" else 1),
            }
        )
    return rows


def planned(cell: Cell, count: int) -> list[Choice] | None:
    """What a plan for training names: a kernel, and of each product the configuration that is fastest on `count` cold
    copies; None where nothing but the reference trains the cell's pattern.
    """
    w = cell.subject.w
    capability = torch.cuda.get_device_capability(w.device) if w.device.type == "cuda" else None
    form, found = Form(cell.case.pattern), detect(w)
    taken, _ = candidates(form, found, (cell.m,), w.device.type, capability, False, trainable=True)
    for built in build(w, taken[:1], str):
        packs = copies(built.packed, min(count, MOST_LAYERS))
        settled = Step.of(cell.subject, cell.m).settled(built, packs, Bench(cell.timer, 0, 0))
        return None if settled is None else [(None, settled.candidate.kernel, settled.candidate.config)]
    return None


@dataclass(frozen=True)
class Layer:
    """A trainable layer with two graphs of one forward, each of which passes back only what is asked for: a node that
    may pass back both dx and dW computes both, whichever the caller wants. x: [m, k], dy: [m, n].
    """

    module: BlockLinear
    x: Tensor
    dy: Tensor
    y_of_x: Tensor
    y_of_values: Tensor
    packed: list[Tensor]

    @classmethod
    def of(cls, cell: Cell, x: Tensor, dy: Tensor, choices: list[Choice] | None) -> Layer:
        """The cell's weight, in tensors of its own."""
        pattern, w = cell.case.pattern, cell.subject.w
        assert isinstance(pattern, Block)
        module = BlockLinear(BlockMatrix.from_dense(w, pattern), choices=choices, trainable=True)
        values, x = module.get_parameter("blocks"), x.detach().requires_grad_()
        values.requires_grad_(False)
        y_of_x = module(x)
        values.requires_grad_(True)
        return cls(module, x, dy, y_of_x, module(x.detach()), list(module.matrix().tensors().values()))

    @property
    def entry(self) -> RowEntry:
        """What the layer runs, and how."""
        return parse_row_table(self.module.kernels).entries[0]

    @property
    def values(self) -> Tensor:
        """The live blocks: [live, rows, cols]."""
        values: Tensor = self.module.get_parameter("blocks")
        return values

    @torch.no_grad()
    def dx(self) -> Tensor:
        """dy @ w"""
        return input_gradient(self.module.kernels, self.dy, self.packed)

    @torch.no_grad()
    def dw(self) -> Tensor:
        """dy.T @ x at the live blocks."""
        return value_gradient(self.module.kernels, self.dy, self.x, self.packed)

    def dx_by_autograd(self) -> Tensor:
        """The same, as a training loop asks for it."""
        return grad(self.y_of_x, self.x, self.dy, retain_graph=True)[0]

    def dw_by_autograd(self) -> Tensor:
        """The same, as a training loop asks for it."""
        return grad(self.y_of_values, self.values, self.dy, retain_graph=True)[0]

    def step(self) -> tuple[Tensor, ...]:
        """y, dx and dw"""
        return grad(self.module(self.x), (self.x, self.values), self.dy)

    def scattered(self, dw: Tensor, dense: Tensor) -> Tensor:
        """dense: [n, k] with the blocks of dw in their places: what is not live is right by definition."""
        indices = [tensor for name, tensor in self.module.matrix().tensors().items() if name != "blocks"]
        shape = (self.module.out_features, self.module.in_features)
        assert isinstance(self.module.pattern, Block)
        live = expand([torch.ones_like(dw), *indices], self.module.pattern, shape) != 0
        return torch.where(live, expand([dw, *indices], self.module.pattern, shape), dense)


def _dx(layer: Layer, dense: Sequence[Tensor]) -> list[Side]:
    """torch's dy @ w, and every dense kernel with the weight turned around beforehand."""
    plain: list[Callable[[], object]] = [_Product(layer.dy, w) for w in dense]
    return [Side("aten", plain), *dense_sides(layer.dy, [w.t().contiguous() for w in dense], None)[1:]]


def _dw(layer: Layer, mask: Tensor) -> list[Side]:
    """torch's dy.T @ x, masked, and every other dense kernel, which wants both turned around."""
    x, dy = layer.x.detach(), layer.dy

    def turned(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: run(dy.t().contiguous(), x.t().contiguous()).mul_(mask)

    sides = [Side("aten", [lambda: (dy.t() @ x).mul_(mask)])]
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available() and x.dtype in (torch.float32, torch.bfloat16):
        onednn = torch.ops.mkldnn._linear_pointwise
        sides.append(Side("onednn", [turned(lambda a, b: onednn(a, b, None, "none", [], ""))]))
    return sides


def _step(layer: Layer, dense: Sequence[Tensor], mask: Tensor) -> list[Side]:
    """torch's autograd, the gradient masked; and the fastest dense kernel for each of the three products."""
    x, dy = layer.x, layer.dy

    def plain(w: Tensor) -> Callable[[], object]:
        w = w.detach().requires_grad_()

        def once() -> object:
            dx, dw = grad(linear(x, w), (x, w), dy)
            return dx, dw.mul_(mask)

        return once

    sides = [Side("aten", [plain(w) for w in dense])]
    forward = dense_sides(x.detach(), dense, None)[1:]
    backward, weight = _dx(layer, dense)[1:], _dw(layer, mask)[1:]
    if forward and backward and weight:
        calls = [
            _InTurn(forward[0].calls[i], backward[0].calls[i], weight[0].calls[0]) for i in range(len(forward[0].calls))
        ]
        sides.append(Side(forward[0].name, calls))
    return sides


@dataclass(frozen=True, eq=False)
class _Product:
    """a @ b"""

    a: Tensor
    b: Tensor

    def __call__(self) -> Tensor:
        return self.a @ self.b


class _InTurn:
    """One call after the other."""

    def __init__(self, *calls: Callable[[], object]) -> None:
        self.calls = calls

    def __call__(self) -> None:
        for each in self.calls:
            each()
