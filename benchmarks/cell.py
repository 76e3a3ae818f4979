"""One weight at one number of rows: dense, every kernel and the peers timed and checked, as result rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ajour.planning.candidates import Candidate, Form
from ajour.planning.correctness import Oracle
from ajour.planning.measuring import Built, Subject, dense_sides, sparse_side
from ajour.planning.timing import Side, Timer, Timing, differ, measure
from ajour.roofline.formula import Limits
from benchmarks.cases import Case
from benchmarks.control import Control
from benchmarks.peers import FAILURES, Peer

Row = dict[str, Any]
HOPELESS = 5.0  # times as slow as the best dense
LARGEST_RATIO = 1e6  # what a result file says of an error that is NaN or endless


@dataclass(frozen=True)
class Work:
    """What no kernel can avoid: the bytes of the weight in canonical form, and a product for each stored element."""

    nbytes: int
    elements: int


@dataclass(frozen=True)
class HeldPeer:
    """A peer with copies of the weight as it holds it; or why it can't hold it."""

    peer: Peer
    copies: Sequence[Tensor]
    reason: str | None = None


@dataclass(frozen=True)
class Held:
    """Copies of one weight, enough of each side's own to be cold: dense, packed dense, each sparse candidate's, each
    peer's. pack_us: what packing took.
    """

    dense: Sequence[Tensor]
    control: Control
    sparse: Sequence[tuple[Built, list[list[Tensor]]]]
    peers: Sequence[HeldPeer] = ()
    pack_us: dict[Candidate, float] = field(default_factory=dict)
    refused: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """A weight with zeros, a number of rows and a way to call ("eager", "graph"), measured for `seconds`."""

    subject: Subject
    case: Case
    work: Work
    m: int
    mode: str
    limits: Limits
    timer: Timer
    seconds: float
    compiled: bool = False

    def rows(self, held: Held) -> list[Row]:
        """Times dense, the packed dense control and every kernel in turns; one row for each kernel and each peer.

        A kernel that fails has a row too, with the reason and an endless error, and the others are measured.
        """
        x = self.subject.inputs(self.m)
        dense = dense_sides(x, held.dense, None)
        broken = [self._broken("", "", reason) for reason in held.refused]
        if self.compiled:
            try:
                dense.append(_compiled_side(x, held.dense))
            except FAILURES as error:
                broken.append({**self.described("peer", "torch.compile", ""), **not_run(first_line(error))})
        oracle = Oracle.of(x, self.subject.w, None)
        control = held.control.sides(x)
        if control and held.control.counts:
            reasons = self._why_out(x, held)
            broken += [{**self.described("peer", name, ""), **not_run(said)} for name, said in reasons.items()]
            control = [side for side in control if side.name not in reasons]
        ours: list[tuple[Built, Side, float]] = []
        for built, packs in held.sparse:
            if self.m not in built.candidate.rows:
                continue
            side = sparse_side(built, x, None, packs)
            try:
                ratio = oracle.error_ratio(built.run(x, None))
                self.timer(side, 0, 1)
            except FAILURES as error:
                broken.append(self._broken(built.candidate.kernel, built.candidate.config, first_line(error), built))
            else:
                ours.append((built, side, ratio))
        sides = [*dense, *control, *(side for _, side, _ in ours)]
        timings = measure(sides, self.timer, seconds=self.seconds, give_up=False)
        known = len(dense) + len(control)
        best = min(range(known if held.control.counts else len(dense)), key=lambda i: timings[i].best)
        controls = [timing.median for timing in timings[len(dense) : known]]
        base = {
            "dense_us": us(timings[best]),
            "dense_kernel": sides[best].name,
            "today_us": us(timings[0]),
            "control_us": round(min(controls), 3) if controls else None,
        }
        found = []
        for (built, _, ratio), timing in zip(ours, timings[known:], strict=True):
            candidate = built.candidate
            described = self.described(candidate.form.op.name, candidate.kernel, candidate.config)
            pack_us = held.pack_us.get(candidate)
            found.append({**described, **base, **self.measured(timing, timings[best], ratio), "pack_us": pack_us})
        peers = [self._peer(each, x, sides[best], timings[best], oracle) for each in held.peers]
        return found + broken + peers

    def _why_out(self, x: Tensor, held: Held) -> dict[str, str]:
        """Why sides of the control do not count: they fail here, or their answer is wrong."""
        sides = held.control.sides(x)
        try:
            ratios = held.control.error_ratios(x, held.dense[0])
            for side in sides:
                self.timer(side, 0, 1)
        except FAILURES as error:
            return {side.name: first_line(error) for side in sides}
        wrong = "its answer is wrong: {:.3g}x the allowed error"
        return {side.name: wrong.format(ratio) for side, ratio in zip(sides, ratios, strict=True) if not ratio <= 1}

    @property
    def _op(self) -> str:
        return Form(self.case.pattern).op.name

    def _broken(self, kernel: str, config: str, reason: str, built: Built | None = None) -> Row:
        op = built.candidate.form.op.name if built else self._op
        return {**self.described(op, kernel, config), **not_run(reason), "error_ratio": LARGEST_RATIO}

    def _peer(self, held: HeldPeer, x: Tensor, dense: Side, beside: Timing, oracle: Oracle) -> Row:
        """A peer beside the best dense side alone, so that a slow one takes no rounds from the kernels above.

        One that is HOPELESS is not run again for the sake of a median: the better of two calls counts.
        """
        peer = held.peer
        described = {**self.described("peer", peer.name, ""), "dense_kernel": dense.name}
        if held.reason:
            return {**described, **not_run(held.reason)}
        try:
            prepared = peer.ready(x, held.copies[0])
            ratio = oracle.error_ratio(peer.run(x, held.copies[0], prepared))
            side = Side(peer.name, [partial(peer.run, x, each, prepared) for each in held.copies])
            once = min(self.timer(side, first, 1) for first in range(2))
            timing = Timing(once, once, once, 1)
            if once <= HOPELESS * beside.median:
                beside, timing = measure([dense, side], self.timer, seconds=self.seconds, give_up=False)
        except FAILURES as error:
            return {**described, **not_run(first_line(error))}
        reason = None if ratio <= 1 else f"its answer is wrong: {ratio:.3g}x the allowed error"
        measured = self.measured(timing, beside, ratio)
        return {**described, "dense_us": us(beside), **measured, "reason": reason}

    def described(self, op: str, kernel: str, config: str) -> Row:
        """What was measured."""
        n, k = self.subject.w.shape
        return {
            "op": op,
            "pattern": str(self.case.pattern),
            "density": round(self.case.density, 4),
            "mask": self.case.mask,
            "kernel": kernel,
            "config": config,
            "m": self.m,
            "n": n,
            "k": k,
            "dtype": str(self.subject.w.dtype).removeprefix("torch."),
            "mode": self.mode,
            "shape": self.subject.name,
            "threads": torch.get_num_threads(),
        }

    def measured(self, timing: Timing, dense: Timing, error_ratio: float, products: int = 1) -> Row:
        """The figures; products: how many of this size were timed together."""
        n, k = self.subject.w.shape
        nbytes = products * (self.work.nbytes + self.m * (n + k) * self.subject.w.element_size())
        limit = self.limits.us(nbytes, products * 2 * self.m * self.work.elements)
        return {
            "sparse_us": round(timing.worst, 3),
            "spread": round(max(timing.spread, dense.spread), 3),
            "speedup": round(dense.best / timing.worst, 3) if error_ratio <= 1 else None,
            "steady": timing.steady and dense.steady,
            "no_difference": not differ(timing, dense),
            "bytes": nbytes,
            "limit_us": round(limit, 3),
            "limit_fraction": round(limit / timing.worst, 3),
            "error_ratio": round(error_ratio, 3) if error_ratio < LARGEST_RATIO else LARGEST_RATIO,
        }


def not_run(reason: str) -> Row:
    """The figures of a peer that does not work here."""
    names = ("dense_us", "sparse_us", "spread", "speedup", "no_difference", "limit_us", "limit_fraction", "error_ratio")
    return {**dict.fromkeys(names), "reason": reason}


def _compiled_side(x: Tensor, weights: Sequence[Tensor]) -> Side:
    """torch.compile's best product for these sizes; it tunes itself on the first call, outside the clock."""
    torch._dynamo.reset()  # it keeps only a few sizes of one function
    compiled = torch.compile(linear, mode="max-autotune-no-cudagraphs", dynamic=False)
    compiled(x, weights[0], None)
    return Side("compiled", [partial(compiled, x, w, None) for w in weights])


def first_line(error: BaseException) -> str:
    """What an error says, short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def us(timing: Timing) -> float:
    """What a bar takes, as a result file holds it: the median, of an unsteady time the fastest turn."""
    return round(timing.best, 3)
