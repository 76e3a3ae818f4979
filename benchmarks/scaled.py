"""2:4 in e4m3 beside dense in e4m3, torch's `_scaled_mm`: each with the rounding of x that every call needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from ajour.formats import ScaledNMMatrix
from ajour.formats.e4m3 import round_rows, rounded, row_scales
from ajour.ops import SCALED_NM_LINEAR
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare
from ajour.ops.scaled_nm_linear import sm90_kernel
from ajour.planning.correctness import Oracle
from ajour.planning.measuring import copies
from ajour.planning.timing import Side, measure
from benchmarks.cell import LARGEST_RATIO, Cell, Row, Work, first_line, not_run, us
from benchmarks.peers import FAILURES


def work_of(w: Tensor) -> Work:
    """The least that any kernel moves and multiplies; 8-bit floats go through the tensor cores at twice the rate."""
    matrix = ScaledNMMatrix.quantize(w)
    return Work(matrix.nbytes, matrix.values.numel() // 2)


def scaled_rows(cell: Cell, count: Callable[[int], int]) -> list[Row]:
    """A row for each kernel and configuration of scaled_nm_linear; count: bytes -> copies that make a side cold.

    Today's time is that of torch's linear on the weight as it was, dense time that of the best dense one in e4m3.
    """
    w, x = cell.subject.w, cell.subject.inputs(cell.m)
    matrix = ScaledNMMatrix.quantize(w)
    oracle = Oracle.of(rounded(x), matrix.to_dense(), None)
    dense = [Side("aten", [partial(linear, x, held[0]) for held in copies([w], count(w.nbytes))]), *_dense(x, w, count)]
    op = SCALED_NM_LINEAR
    ours, broken = [], []
    for name, config in _candidates(matrix, cell.m):
        try:
            packed, table = prepare(op, matrix, [(None, name, config)])
            ratio = oracle.error_ratio(op.call(x, packed, None, table, "none"))
            held = copies(packed, count(sum(t.nbytes for t in packed)))
            side = Side(f"{name} {config}", [partial(op.call, x, each, None, table, "none") for each in held])
            cell.timer(side, 0, 1)
        except FAILURES as error:
            row = {**cell.described(op.name, name, config), **not_run(first_line(error)), "error_ratio": LARGEST_RATIO}
            broken.append(row)
        else:
            ours.append((name, config, side, ratio))
    timings = measure([*dense, *(side for *_, side, _ in ours)], cell.timer, seconds=cell.seconds, give_up=False)
    best = min(range(min(1, len(dense) - 1), len(dense)), key=lambda i: timings[i].best)
    base = {"dense_us": us(timings[best]), "dense_kernel": dense[best].name, "today_us": us(timings[0])}
    found = [
        {**cell.described(op.name, name, config), **base, **cell.measured(timing, timings[best], ratio)}
        for (name, config, _, ratio), timing in zip(ours, timings[len(dense) :], strict=True)
    ]
    return found + broken


def _candidates(matrix: ScaledNMMatrix, m: int) -> Iterator[tuple[str, str]]:
    problem = problem_of(matrix, m)
    for name, kernel in SCALED_NM_LINEAR.kernels.items():
        if name != "reference" and kernel.why_not(problem) is None:
            yield from ((name, config) for config in kernel.configs(problem))


def _dense(x: Tensor, w: Tensor, count: Callable[[int], int]) -> Sequence[Side]:
    """torch's product in e4m3 with a scale for each row of x and w; nothing where it does not work."""
    scales = row_scales(w)
    packed = [round_rows(w, scales), scales.float().unsqueeze(0)]

    def run(held: list[Tensor]) -> Tensor:
        if x.is_cuda:
            small, x_scales = sm90_kernel.round_rows(x)
        else:
            x_scales = row_scales(x)
            small, x_scales = round_rows(x, x_scales), x_scales.float()
        return torch._scaled_mm(
            small, held[0].t(), x_scales.unsqueeze(1), held[1], out_dtype=x.dtype, use_fast_accum=x.is_cuda
        )

    try:
        run(packed)
    except FAILURES:
        return []
    return [Side("scaled_mm", [partial(run, held) for held in copies(packed, count(packed[0].nbytes))])]
