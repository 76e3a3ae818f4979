"""The ops suite: every kernel against the best dense, on weights of real shapes, cold, checked in the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ajour.detect import detect
from ajour.planning.candidates import Form, candidates
from ajour.planning.correctness import Oracle
from ajour.planning.device import last_level_cache
from ajour.planning.measuring import Built, Subject, build, copies, dense_sides, sparse_side
from ajour.planning.timing import COLD, COPIES_LIMIT, CudaTimer, Timer, Timing, cpu_timer, differ, measure
from benchmarks.control import control_side, panels
from benchmarks.limits import Limits, measured
from benchmarks.shapes import Case, pruned

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What to measure. seconds: for each cell; modes: "eager", and "graph" on a GPU; smoke: only that it works."""

    shapes: dict[str, tuple[int, int]]
    cases: Sequence[Case]
    dtypes: Sequence[torch.dtype]
    threads: Sequence[int]
    device: torch.device
    rows: Sequence[int] | None = None
    seconds: float = 0.3
    smoke: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """Eager calls everywhere, and replays of a CUDA graph."""
        return ("graph", "eager") if self.device.type == "cuda" else ("eager",)

    def timer(self, mode: str) -> Timer:
        """The clock of a mode."""
        return CudaTimer(graph=mode == "graph") if self.device.type == "cuda" else cpu_timer


def run(settings: Settings) -> Iterator[tuple[str, list[Row]]]:
    """For each cell what it was and its result rows. One cell times dense and all sparse kernels in turns."""
    before = torch.get_num_threads()
    try:
        for threads in settings.threads:
            torch.set_num_threads(threads)
            for dtype in settings.dtypes:
                limits = measured(dtype, settings.device, settings.timer(settings.modes[0]), smoke=settings.smoke)
                for name, shape in settings.shapes.items():
                    yield from _shape(settings, name, shape, dtype, limits)
    finally:
        torch.set_num_threads(before)


def _count(settings: Settings, nbytes: int) -> int:
    """Copies that make a side cold."""
    cold = 1 if settings.smoke else min(COLD * last_level_cache(settings.device), COPIES_LIMIT)
    return max(1, -(-cold // max(1, nbytes)))


def _shape(
    settings: Settings, name: str, shape: tuple[int, int], dtype: torch.dtype, limits: Limits
) -> Iterator[tuple[str, list[Row]]]:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(*shape, generator=generator).to(settings.device, dtype)
    weights = [held[0] for held in copies([w], _count(settings, w.numel() * w.element_size()))]
    packed = panels(weights)
    for case in settings.cases:
        subject = Subject(name, pruned(shape, case, dtype).to(settings.device), None)
        rows = case.rows if settings.rows is None else settings.rows
        built = _built(settings, subject, case, rows)
        matrix = Form(case.pattern).op.matrix.from_dense(subject.w, case.pattern)
        work = Work(matrix.nbytes, matrix.values.numel())
        held = Held(weights, packed, [(each, copies(each.packed, _count(settings, each.nbytes))) for each in built])
        for m in rows:
            for mode in settings.modes:
                cell = _Cell(settings, subject, case, work, m, mode, limits)
                yield f"{name} {case} at {m} rows", cell.rows(held)


def _built(settings: Settings, subject: Subject, case: Case, rows: Sequence[int]) -> list[Built]:
    """Every kernel and configuration that takes the case at some of the rows."""
    capability = torch.cuda.get_device_capability(settings.device) if settings.device.type == "cuda" else None
    found = detect(subject.w)
    taken, _ = candidates(Form(case.pattern), found, rows, settings.device.type, capability, False)
    refused: list[str] = []
    built = build(subject.w, taken, refused.append)
    if refused:
        raise RuntimeError("; ".join(refused))
    return built


@dataclass(frozen=True)
class Work:
    """What no kernel can avoid: the bytes of the weight in canonical form, and a product for each stored element."""

    nbytes: int
    elements: int


@dataclass(frozen=True)
class Held:
    """Copies of one weight, enough of each side's own to be cold: dense, packed dense, and each sparse candidate's."""

    dense: Sequence[Tensor]
    panels: Sequence[Tensor]
    sparse: Sequence[tuple[Built, list[list[Tensor]]]]


@dataclass(frozen=True)
class _Cell:
    """One weight at one number of rows."""

    settings: Settings
    subject: Subject
    case: Case
    work: Work
    m: int
    mode: str
    limits: Limits

    def rows(self, held: Held) -> list[Row]:
        """Times dense, the packed dense control and every kernel in turns; one row for each kernel."""
        x = self.subject.inputs(self.m)
        dense = dense_sides(x, held.dense, None)
        control = control_side(x, held.panels)
        mine = [(each, packs) for each, packs in held.sparse if self.m in each.candidate.rows]
        sides = [*dense, *control, *(sparse_side(each, x, None, packs) for each, packs in mine)]
        timings = measure(sides, self.settings.timer(self.mode), seconds=self.settings.seconds, give_up=False)
        oracle = Oracle.of(x, self.subject.w, None)
        best = min(range(len(dense)), key=lambda i: timings[i].median)
        base = {
            "dense_us": _us(timings[best]),
            "dense_kernel": dense[best].name,
            "today_us": _us(timings[0]),
            "control_us": _us(timings[len(dense)]) if control else None,
        }
        sparse = timings[len(dense) + len(control) :]
        return [
            self._row(each, timing, timings[best], base, oracle.error_ratio(each.run(x, None)))
            for (each, _), timing in zip(mine, sparse, strict=True)
        ]

    def _row(self, built: Built, timing: Timing, dense: Timing, base: Row, error_ratio: float) -> Row:
        n, k = self.subject.w.shape
        candidate = built.candidate
        nbytes = self.work.nbytes + self.m * (n + k) * self.subject.w.element_size()
        limit = self.limits.us(nbytes, 2 * self.m * self.work.elements)
        return {
            "op": candidate.form.op.name,
            "pattern": str(self.case.pattern),
            "density": round(self.case.density, 4),
            "mask": self.case.mask,
            "kernel": candidate.kernel,
            "config": candidate.config,
            "m": self.m,
            "n": n,
            "k": k,
            "dtype": str(self.subject.w.dtype).removeprefix("torch."),
            "mode": self.mode,
            **base,
            "sparse_us": _us(timing),
            "spread": round(max(timing.spread, dense.spread), 3),
            "speedup": round(dense.median / timing.median, 3) if error_ratio <= 1 else None,
            "no_difference": not differ(timing, dense),
            "bytes": nbytes,
            "limit_us": round(limit, 3),
            "limit_fraction": round(limit / timing.median, 3),
            "error_ratio": round(error_ratio, 3) if error_ratio < 1e6 else 1e6,
            "shape": self.subject.name,
            "threads": torch.get_num_threads(),
        }


def _us(timing: Timing) -> float:
    return round(timing.median, 3)
