"""Layers: each row says what was measured; a wrong or failing kernel has no gain. No clock decides here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks import ops
from benchmarks.cases import tiny_cases
from benchmarks.cell import Cell, Work
from benchmarks.control import Control, control_of
from benchmarks.shapes import SMOKE, TINY
from suites import settings, spoil_block_kernel, told
from torch.nn.functional import linear
from triton.errors import TritonError

from ajour.ops import BLOCK_LINEAR
from ajour.planning.correctness import Oracle
from ajour.planning.measuring import Subject
from ajour.planning.timing import CudaTimer, Side, Timing
from ajour.roofline.formula import Limits

PROMISED = {
    "op", "pattern", "density", "mask", "kernel", "config", "m", "n", "k", "dtype", "mode", "dense_us", "dense_kernel",
    "sparse_us", "spread", "speedup", "bytes", "limit_us", "limit_fraction", "error_ratio",
}  # fmt: skip


def test_the_smallest_layer_shows_what_a_call_costs(clock: None) -> None:
    rows = [row for _, found in ops.run(settings(shapes=TINY, peers=False)) for row in found]
    assert {(row["shape"], row["m"], row["pattern"]) for row in rows} == {("tiny", 1, str(tiny_cases()[0].pattern))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 4, 8])
def test_the_control_is_right(m: int, dtype: torch.dtype) -> None:
    x, w = torch.randn(m, 96).to(dtype), torch.randn(64, 96).to(dtype)
    (side,) = control_of([w]).sides(x)
    y = side.calls[0]()
    assert isinstance(y, torch.Tensor)
    assert Oracle.of(x, w, None).error_ratio(y) <= 1


def test_the_control_is_for_few_rows_on_a_cpu() -> None:
    w = torch.randn(64, 96)
    assert control_of([w]).sides(torch.randn(9, 96)) == []
    for other in (torch.randn(65, 96), torch.randn(64, 95), w.half()):
        assert control_of([other]).sides(torch.randn(1, other.shape[1])) == []


@pytest.mark.parametrize(("off", "best", "speedup"), [(1.0, "packed dense", 1.0), (1.01, "onednn", 2.5)])
def test_a_control_that_counts_is_a_dense_kernel_if_it_is_right(
    off: float, best: str, speedup: float, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = (("packed dense", lambda x, w: linear(x, w) * off),)
    monkeypatch.setattr(ops, "control_of", lambda weights: Control(weights, kernels, most_rows=16, counts=True))
    found = [row for _, rows in ops.run(settings(peers=False, rows=[16, 128])) for row in rows]
    few = [row for row in found if row["op"] != "peer" and row["m"] == 16]
    assert {(row["dense_kernel"], row["speedup"]) for row in few} == {(best, speedup)}
    assert {row["control_us"] for row in few} == {40.0 if off == 1 else None}
    assert all(row["dense_kernel"] == "onednn" and not row["control_us"] for row in found if row["m"] == 128)
    wrong = [row for row in found if row["op"] == "peer" and row["kernel"] == "packed dense"]
    assert len(wrong) == (off != 1)
    assert all("its answer is wrong" in row["reason"] for row in wrong)


def test_the_limit_is_an_empty_call_and_the_slower_of_bytes_and_products() -> None:
    limits = Limits(bandwidth=1000.0, rate=2000.0, empty=3.0)
    assert limits.us(50_000, 1000) == 53.0
    assert limits.us(1000, 20_000) == 13.0


def test_of_several_limits_the_best_counts() -> None:
    assert Limits(10.0, 5.0, 3.0).best(Limits(8.0, 7.0, 2.0)) == Limits(10.0, 7.0, 2.0)
    assert Limits(10.0, 5.0, 3.0).best(None) == Limits(10.0, 5.0, 3.0)


def test_each_row_says_what_was_measured(clock: None) -> None:
    found = [row for _, rows in ops.run(settings(peers=False)) for row in rows]
    assert {row["m"] for row in found} == {1, 16, 128}
    for row in found:
        assert set(row) >= PROMISED
        assert (row["op"], row["pattern"], row["mask"], row["dtype"]) == (
            "block_linear",
            "block 32x32",
            "random",
            "float32",
        )
        assert (row["n"], row["k"]) == SMOKE["smoke"]
        assert (row["dense_us"], row["dense_kernel"], row["today_us"], row["sparse_us"]) == (
            100.0,
            "onednn",
            200.0,
            40.0,
        )
        assert (row["speedup"], row["no_difference"], row["mode"], row["threads"]) == (2.5, False, "eager", 1)
        assert 0 < row["error_ratio"] <= 1
        assert row["limit_us"] == pytest.approx(row["limit_fraction"] * 40, abs=0.03)


@pytest.mark.usefixtures("kernels_in_python")
@pytest.mark.parametrize("spoil", [lambda y: y * 1.01, lambda y: y * float("nan")], ids=["scaled", "nan"])
def test_a_wrong_kernel_has_no_speedup(
    clock: None, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    spoil_block_kernel(monkeypatch, spoil)
    found = [row for _, rows in ops.run(settings()) for row in rows if row["kernel"] == "cpu"]
    assert found
    assert all(row["speedup"] is None and row["error_ratio"] > 1 for row in found)


@pytest.mark.usefixtures("kernels_in_python")
def test_a_failing_kernel_has_a_row_with_its_reason_and_stops_nothing(
    clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> torch.Tensor:
        raise RuntimeError("no such instruction\nat 0x0")

    kernel = BLOCK_LINEAR.kernels["cpu"]
    monkeypatch.setitem(BLOCK_LINEAR.kernels, "cpu", replace(kernel, run=fail))
    found = [row for _, rows in ops.run(settings(peers=False)) for row in rows]
    assert {row["m"] for row in found} == {1, 16, 128}
    assert all(
        (row["reason"], row["sparse_us"], row["speedup"]) == ("no such instruction", None, None) for row in found
    )
    assert all(row["error_ratio"] > 1 for row in found)


def test_every_mode_has_rows_and_a_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def clock(self: ops.Settings, mode: str) -> Any:
        asked.append(mode)
        return lambda side, first, count: 10.0 if mode == "graph" else 30.0

    monkeypatch.setattr(ops.Settings, "timer", clock)
    found = [row for _, rows in ops.run(settings(modes=("graph", "eager"), rows=[3], peers=False)) for row in rows]
    assert [(row["mode"], row["sparse_us"]) for row in found] == [("graph", 10.0), ("eager", 30.0)]
    assert set(asked) == {"graph", "eager"}


def test_a_gpu_is_timed_by_its_own_events() -> None:
    on_gpu = settings(device=torch.device("cuda"))
    for mode in ("graph", "eager"):
        timer = on_gpu.timer(mode)
        assert isinstance(timer, CudaTimer)
        assert timer.graph == (mode == "graph")


def test_compiled_dense_is_a_side_that_tunes_itself_outside_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compiled(x: torch.Tensor, w: torch.Tensor, bias: None) -> torch.Tensor:
        calls.append(len(x))
        return torch.nn.functional.linear(x, w, bias)

    def clock(side: Side, first: int, count: int) -> float:
        assert calls, "the clock ran before the first call"
        return {"compiled": 20.0}.get(side.name, 80.0)

    monkeypatch.setattr(torch, "compile", lambda *args, **how: compiled)
    monkeypatch.setattr(ops.Settings, "timer", lambda self, mode: told)
    case = ops.run(settings(rows=[3], peers=False, compiled=True))
    monkeypatch.setattr(ops, "measured", lambda *args, **more: Limits(1e6, 1e6, 1.0))
    monkeypatch.setattr(ops.Settings, "timer", lambda self, mode: clock)
    (row,) = [row for _, rows in case for row in rows]
    assert (row["dense_us"], row["dense_kernel"], row["speedup"]) == (20.0, "compiled", 0.25)


def test_a_compiler_that_fails_is_told_and_missed_only_there(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **how: Any) -> None:
        raise TritonError("out of shared memory")

    monkeypatch.setattr(torch, "compile", fail)
    found = [row for _, rows in ops.run(settings(rows=[3], peers=False, compiled=True)) for row in rows]
    assert [(row["kernel"], row.get("reason"), row["speedup"]) for row in found] == [
        ("cpu", None, 2.5),
        ("torch.compile", "out of shared memory", None),
    ]


def test_rows_can_be_asked_for_and_threads_are_given_back(clock: None) -> None:
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    found = [row for _, rows in ops.run(settings(rows=[3], threads=[other])) for row in rows]
    assert {(row["m"], row["threads"]) for row in found} == {(3, other)}
    assert torch.get_num_threads() == before


def test_of_unsteady_times_only_the_certain_gain_is_a_result() -> None:
    (case,) = tiny_cases()
    cell = Cell(
        Subject("tiny", torch.randn(64, 96), None), case, Work(100, 100), 1, "eager", Limits(1.0, 1.0, 1.0), told, 0.1
    )
    steady, restless = Timing(50, 49, 51), Timing(100, 60, 200, least=60)
    row = cell.measured(steady, restless, 0.5)
    assert (row["sparse_us"], row["speedup"], row["steady"], row["no_difference"]) == (50, 1.2, False, False)
    row = cell.measured(restless, steady, 0.5)
    assert (row["sparse_us"], row["speedup"], row["steady"], row["no_difference"]) == (200, 0.25, False, False)
