"""What training a layer takes: y, dx and dw as one step, each by the configuration that was its fastest here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ajour.ops import DENSE_LINEAR
from ajour.ops.gradients import EXPAND, input_gradient, training_configs, value_gradient
from ajour.planning.correctness import MULTIPLICATIONS, Oracle
from ajour.planning.measuring import Bench, Built, Forward, Subject, dense_sides, why_wrong
from ajour.planning.timing import Side, measure
from ajour.terms.kernel import PRODUCTS, config_for
from ajour.terms.pattern import Dense
from ajour.terms.problem import Problem
from ajour.terms.row_table import make_row_table, parse_row_table


@dataclass(frozen=True)
class Step(Forward):
    """What is timed for training: y = x @ w.T + bias, dx = dy @ w and dw = dy.T @ x where the weight is stored.

    The products alone, without what autograd adds to sparse and dense alike. oracles: of dx and dw.
    """

    dy: Tensor
    oracles: Mapping[str, Oracle]

    @classmethod
    def of(cls, subject: Subject, m: int, multiplications: float = MULTIPLICATIONS) -> Step:
        """With random x and dy, each product checked by so many multiplications in float64."""
        x, n = subject.inputs(m), subject.w.shape[0]
        generator = torch.Generator(x.device).manual_seed(-m)
        dy = torch.randn(m, n, generator=generator, device=x.device).to(x.dtype)
        oracles = {
            "dx": Oracle.of(dy, subject.w.t().contiguous(), None, multiplications),
            "dw": Oracle.of(dy.t().contiguous(), x.t().contiguous(), None, multiplications),
        }
        return cls(subject, x, Oracle.of(x, subject.w, subject.bias, multiplications), dy, oracles)

    def why_wrong(self, built: Built, products: Sequence[str] = PRODUCTS) -> str | None:
        """None if all of these products are right by the error rule, else what is wrong with the first that is not."""
        ratios = (why_wrong(built, self.x.shape[0], name, partial(self._ratio, name, built)) for name in products)
        return next(filter(None, ratios), None)

    def _ratio(self, name: str, built: Built) -> float:
        found = _product(self.x, self.dy, self.subject.bias, built, built.packed, name)
        oracle = self.oracles.get(name, self.oracle)
        return oracle.error_ratio(_scattered(found, built, oracle.dense) if name == "dw" else found)

    def dense_sides(self, weights: Sequence[Tensor]) -> list[Side]:
        """torch's three products first, then those of every other dense kernel that takes all three problems."""
        subject, x, dy = self.subject, self.x, self.dy
        forward = dense_sides(x, weights, subject.bias, subject.transposed)
        turned = [w.t().contiguous() for w in weights]  # beforehand, in favour of dense
        dx = {side.name: side for side in dense_sides(dy, turned, None)}
        of_w = turned if subject.transposed else weights
        plain = [partial(_plain, x, dy, y, w, subject.transposed) for y, w in zip(forward[0].calls, of_w, strict=True)]
        sides = [Side("aten", plain)]
        for side in forward[1:]:
            dw = _dense_dw(side.name, x, dy)
            if dw is not None and side.name in dx:
                calls = [partial(_in_turn, x, y, z, dw) for y, z in zip(side.calls, dx[side.name].calls, strict=True)]
                sides.append(Side(side.name, calls))
        return sides

    def settled(self, built: Built, packs: Sequence[list[Tensor]], bench: Bench) -> Built | None:
        """The candidate with the fastest right configuration of each product; None if a product has none."""
        lists = self._configs(built)
        parts = [configs[0] for configs in lists]
        for place, (name, configs) in enumerate(zip(PRODUCTS, lists, strict=True)):
            if len(configs) == 1:
                continue
            tried = [built.configured(config_for([*parts[:place], each, *parts[place + 1 :]])) for each in configs]
            sides, right = [], []
            for each, config in zip(tried, configs, strict=True):
                side = Side(f"{each.candidate.kernel} {config}", self._calls(_product, each, packs, name))
                wrong = self.why_wrong(each, (name,))
                if bench.right(self.subject, wrong) and bench.timeable(self.subject, side, self.x.shape[0]):
                    sides.append(side)
                    right.append(config)
            if not right:
                return None
            timings = measure(sides, bench.timer)
            parts[place] = min(zip(right, timings, strict=True), key=lambda pair: pair[1].worst)[0]
        return built.configured(config_for(parts))

    def side(self, built: Built, packs: Sequence[list[Tensor]]) -> Side:
        """The candidate's three products, one after the other."""
        return Side(built.candidate.kernel, self._calls(_step, built, packs))

    def _calls(
        self, run: Callable[..., object], built: Built, packs: Sequence[list[Tensor]], *more: str
    ) -> list[Callable[[], object]]:
        return [partial(run, self.x, self.dy, self.subject.bias, built, packed, *more) for packed in packs]

    def _configs(self, built: Built) -> tuple[tuple[str, ...], ...]:
        """What the candidate's kernel may do for each of PRODUCTS."""
        form, w = built.candidate.form, self.subject.w
        capability = torch.cuda.get_device_capability(w.device) if w.device.type == "cuda" else None
        dtype, density = str(w.dtype).removeprefix("torch."), int(torch.count_nonzero(w)) / w.numel()
        n, k = w.shape
        problem = Problem(form.op.name, form.pattern, len(self.x), n, k, dtype, w.device.type, capability, density)
        return training_configs(form.op, form.op.kernel(built.candidate.kernel), problem)


def _product(x: Tensor, dy: Tensor, bias: Tensor | None, built: Built, packed: list[Tensor], name: str) -> Tensor:
    """y, dx or dw, through the op."""
    if name == "forward":
        return built.run(x, bias, packed)
    if name == "dx":
        return input_gradient(built.candidate.form.op, built.table, dy, packed)
    return value_gradient(built.candidate.form.op, built.table, dy, x, packed)


def _step(x: Tensor, dy: Tensor, bias: Tensor | None, built: Built, packed: list[Tensor]) -> None:
    for name in PRODUCTS:
        _product(x, dy, bias, built, packed, name)


def _scattered(dw: Tensor, built: Built, dense: Tensor) -> Tensor:
    """dense: [n, k] with dw in its places: what is not stored is right by definition."""
    table = parse_row_table(built.table)
    expand, shape = EXPAND[built.candidate.form.op.name], (table.n, table.k)
    stored = expand([torch.ones_like(dw), *built.packed[1:]], table.pattern, shape) != 0
    return torch.where(stored, expand([dw, *built.packed[1:]], table.pattern, shape), dense)


def _plain(x: Tensor, dy: Tensor, y: Callable[[], object], w: Tensor, transposed: bool) -> None:
    """torch's three products; w: [n, k], [k, n] if transposed."""
    y()
    if transposed:
        torch.matmul(dy, w.t()), torch.matmul(x.t(), dy)
    else:
        torch.matmul(dy, w), torch.matmul(dy.t(), x)


def _in_turn(x: Tensor, y: Callable[[], object], dx: Callable[[], object], dw: Callable[[], object]) -> None:
    y(), dx(), dw()


def _dense_dw(name: str, x: Tensor, dy: Tensor) -> Callable[[], object] | None:
    """dy.T @ x by the dense kernel of that name, which wants both turned; None where it does not take that problem."""
    kernel, (m, k), n = DENSE_LINEAR.kernel(name), x.shape, dy.shape[1]
    dtype = str(x.dtype).removeprefix("torch.")
    if kernel.why_not(Problem(DENSE_LINEAR.name, Dense(), n, k, m, dtype, x.device.type)):
        return None
    table = str(make_row_table(k, m, dtype, Dense(), [(None, name, 0, 1, "")]))
    return lambda: DENSE_LINEAR.call(dy.t().contiguous(), [x.t().contiguous()], None, table, "none")
