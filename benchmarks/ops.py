"""The ops suite: every kernel against the best dense, on weights of real shapes, cold, checked in the same run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ajour.detect import detect
from ajour.formats.e4m3 import EXPONENTS
from ajour.ops.prepare import packed_form, prepare
from ajour.planning.candidates import Candidate, Form, candidates
from ajour.planning.device import last_level_cache
from ajour.planning.measuring import Built, Subject, build, copies
from ajour.planning.timing import COLD, COPIES_LIMIT, CudaTimer, Timer, cpu_timer
from ajour.roofline.formula import Limits
from ajour.roofline.measured import measured
from benchmarks.cases import Case, pruned, tiny_cases
from benchmarks.cell import Cell, Held, HeldPeer, Row, Work, first_line
from benchmarks.control import control_of
from benchmarks.gradients import gradient_rows, trained
from benchmarks.peers import FAILURES, Peer, held_bytes, peers_for
from benchmarks.scaled import scaled_rows, work_of
from benchmarks.shapes import TINY

MOST_COPIES = 2048  # of a weight so small that no more of them make a difference
PACKINGS = 3
PACKED_ONCE_MORE = 1 << 24  # elements up to which packing is timed on its own


@dataclass(frozen=True)
class Settings:
    """What to measure. only: cells whose name holds one of these texts; seconds: for each cell; smoke: only that it
    works; peers: torch's own sparse tensors too; gradients: what training takes, too; compiled: torch.compile's dense
    too, tuned for every cell; modes: "eager", and "graph" for replays of a CUDA graph; known: cells (as `cell_of` names
    them) that were measured before and are left out, products of training aside.
    """

    shapes: dict[str, tuple[int, int]]
    cases: Sequence[Case]
    dtypes: Sequence[torch.dtype]
    threads: Sequence[int]
    device: torch.device
    rows: Sequence[int] | None = None
    only: Sequence[str] = ("",)
    seconds: float = 0.3
    smoke: bool = False
    peers: bool = True
    gradients: bool = True
    compiled: bool = False
    modes: Sequence[str] = ("eager",)
    known: frozenset[tuple[Any, ...]] = frozenset()

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
                limits: dict[str, Limits] = {}
                for name, shape in settings.shapes.items():
                    for mode in settings.modes:  # anew for each shape, so that one bad moment does not bend them all
                        found = measured(dtype, settings.device, settings.timer(mode), smoke=settings.smoke)
                        limits[mode] = found.best(limits.get(mode))
                    yield from _shape(settings, name, shape, dtype, limits)
    finally:
        torch.set_num_threads(before)


def cell_of(row: Row) -> tuple[Any, ...]:
    """What names the cell of a result row."""
    return tuple(row.get(each) for each in ("shape", "pattern", "density", "mask", "dtype", "m", "mode", "threads"))


def _known(settings: Settings, name: str, case: Case, dtype: torch.dtype, m: int) -> bool:
    """Whether all that is to be measured of a case at m rows stands in a result already."""
    described = (name, str(case.pattern), round(case.density, 4), case.mask, str(dtype).removeprefix("torch."), m)
    return not (settings.gradients and trained(case, [m])) and all(
        (*described, mode, torch.get_num_threads()) in settings.known for mode in settings.modes
    )


def _count(settings: Settings, nbytes: int) -> int:
    """Copies that make a side cold."""
    cold = 1 if settings.smoke else min(COLD * last_level_cache(settings.device), COPIES_LIMIT)
    return max(1, min(-(-cold // max(1, nbytes)), MOST_COPIES))


def _shape(
    settings: Settings, name: str, shape: tuple[int, int], dtype: torch.dtype, limits: dict[str, Limits]
) -> Iterator[tuple[str, list[Row]]]:
    cases = tiny_cases(settings.device.type) if name in TINY else settings.cases
    chosen = [case for case in cases if any(text in f"{name} {case}" for text in settings.only)]
    chosen = [case for case in chosen if not case.values or dtype in EXPONENTS]
    if not chosen:
        return
    generator = torch.Generator(settings.device).manual_seed(1)
    w = torch.randn(*shape, generator=generator, device=settings.device).to(dtype)
    weights = [held[0] for held in copies([w], _count(settings, w.numel() * w.element_size()))]
    control = control_of(weights)
    for case in chosen:
        rows = [m for m in settings.rows or case.rows if not _known(settings, name, case, dtype, m)]
        if not rows:
            continue
        subject = Subject(name, pruned(shape, case, dtype, device=settings.device), None)
        if case.values:
            yield from _scaled(settings, subject, case, rows, limits)
            continue
        built, refused = _built(settings, subject, case, rows)
        matrix = Form(case.pattern).op.matrix.from_dense(subject.w, case.pattern)
        work = Work(matrix.nbytes, matrix.values.numel())
        sparse = [(each, copies(each.packed, _count(settings, each.nbytes))) for each in built]
        peers = _peers(settings, subject.w, case) if settings.peers else []
        held = Held(weights, control, sparse, peers, _packing_times(subject.w, built, settings), refused)
        for m in rows:
            for mode in settings.modes:
                cell = Cell(
                    subject, case, work, m, mode, limits[mode], settings.timer(mode), settings.seconds,
                    settings.compiled,
                )  # fmt: skip
                yield f"{name} {case} at {m} rows", cell.rows(held)
        for m in trained(case, rows) if settings.gradients else ():
            timer = settings.timer("eager")
            cell = Cell(subject, case, work, m, "eager", limits[settings.modes[-1]], timer, settings.seconds)
            yield f"{name} {case} at {m} rows", gradient_rows(cell, weights, _count(settings, work.nbytes))


def _scaled(
    settings: Settings, subject: Subject, case: Case, rows: Sequence[int], limits: dict[str, Limits]
) -> Iterator[tuple[str, list[Row]]]:
    """The cells of a case in 8-bit floats."""
    work = work_of(subject.w)
    for m in rows:
        for mode in settings.modes:
            cell = Cell(subject, case, work, m, mode, limits[mode], settings.timer(mode), settings.seconds)
            yield f"{subject.name} {case} at {m} rows", scaled_rows(cell, lambda nbytes: _count(settings, nbytes))


def _built(settings: Settings, subject: Subject, case: Case, rows: Sequence[int]) -> tuple[list[Built], list[str]]:
    """Every kernel and configuration that takes the case at some of the rows; and what failed to pack."""
    capability = torch.cuda.get_device_capability(settings.device) if settings.device.type == "cuda" else None
    found, taken = detect(subject.w), []
    for form in case.forms(settings.device.type):
        taken += candidates(form, found, rows, settings.device.type, capability, False)[0]
    refused: list[str] = []
    return build(subject.w, taken, refused.append), refused


def _packing_times(w: Tensor, built: Sequence[Built], settings: Settings) -> dict[Candidate, float]:
    """µs of packing the canonical form anew, for each candidate; those that share a packed form are timed once. The
    median of PACKINGS, of which the first may wait for pages that a virtual machine has to ask its host for. Nothing
    for the largest weights.
    """
    times: dict[Candidate, float] = {}
    known: dict[tuple[Form, tuple[str, str]], float] = {}
    if settings.smoke or w.numel() > PACKED_ONCE_MORE:
        return times
    forms = dict.fromkeys(each.candidate.form for each in built)
    matrices = {form: form.op.matrix.from_dense(w, form.pattern) for form in forms}
    for candidate in (each.candidate for each in built):
        kernel = candidate.form.op.kernel(candidate.kernel)
        packed = candidate.form, packed_form(kernel, candidate.config)
        taken: list[float] = []
        for _ in range(PACKINGS if packed not in known else 0):
            start = time.perf_counter()
            prepare(candidate.form.op, matrices[candidate.form], [(None, candidate.kernel, candidate.config)])
            if settings.device.type == "cuda":
                torch.cuda.synchronize(settings.device)
            taken.append(time.perf_counter() - start)
        known.setdefault(packed, round(median(taken or [0.0]) * 1e6, 1))
        times[candidate] = known[packed]
    return times


def _peers(settings: Settings, w: Tensor, case: Case) -> list[HeldPeer]:
    return [_held(settings, peer, w, case) for peer in peers_for(case.pattern, settings.device.type)]


def _held(settings: Settings, peer: Peer, w: Tensor, case: Case) -> HeldPeer:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta")
            held = peer.pack(w, case.pattern)
        count = _count(settings, held_bytes(held))
        return HeldPeer(peer, [held, *(held.clone() for _ in range(count - 1))])
    except FAILURES as error:
        return HeldPeer(peer, [], first_line(error))
