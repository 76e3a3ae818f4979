"""The benchmarks measure what they say: right zeros, right answers, one shape of result; no clock decides here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import models, ops, results
from benchmarks.control import control_side, panels
from benchmarks.encoder import encoder
from benchmarks.limits import Limits
from benchmarks.shapes import SHAPES, SMOKE, Case, cases, pruned, smoke_cases
from rich.console import Console

from ajour.detect import detect
from ajour.ops import BLOCK_LINEAR
from ajour.planning.correctness import Oracle
from ajour.planning.timing import Side
from ajour.terms.pattern import NM, Block, Unstructured

CPU = torch.device("cpu")
PROMISED = {
    "op", "pattern", "density", "mask", "kernel", "config", "m", "n", "k", "dtype", "mode", "dense_us", "dense_kernel",
    "sparse_us", "spread", "speedup", "bytes", "limit_us", "limit_fraction", "error_ratio",
}  # fmt: skip


def _told(side: Side, first: int, count: int) -> float:
    return {"aten": 200.0, "onednn": 100.0}.get(side.name, 40.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as told: aten 200, oneDNN 100, everything else 40 µs."""
    monkeypatch.setattr(ops.Settings, "timer", lambda self, mode: _told)
    monkeypatch.setattr(models, "cpu_timer", _told)


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_zeros_that_their_case_names(case: Case, dtype: torch.dtype) -> None:
    w = pruned((512, 512), case, dtype)
    found = detect(w)
    assert found.pattern == case.pattern
    assert found.density == pytest.approx(case.density, rel=0.25)
    assert torch.equal(w, pruned((512, 512), case, dtype)), "every run measures the same weights"


@pytest.mark.parametrize("pattern", [Block(32, 32), Block(4, 1), Unstructured()])
def test_skewed_masks_have_rows_of_very_different_density(pattern: Any) -> None:
    even, skewed = (
        (pruned((2048, 2048), Case(pattern, 0.1, mask, (1,)), torch.float32) != 0).view(64, -1).float().mean(1)
        for mask in ("random", "skewed")
    )
    height = pattern.rows if isinstance(pattern, Block) else 1
    assert skewed.std() > (2 if height == 32 else 1.2) * even.std()
    assert skewed.mean() == pytest.approx(0.1, rel=0.15)


def test_every_target_shape_is_a_multiple_of_what_its_patterns_need() -> None:
    assert all(n % 32 == 0 and k % 32 == 0 for n, k in [*SHAPES.values(), *SMOKE.values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 4, 8])
def test_the_control_is_right(m: int, dtype: torch.dtype) -> None:
    x, w = torch.randn(m, 96).to(dtype), torch.randn(64, 96).to(dtype)
    (side,) = control_side(x, panels([w]))
    y = side.calls[0]()
    assert isinstance(y, torch.Tensor)
    assert Oracle.of(x, w, None).error_ratio(y) <= 1


def test_the_control_is_for_few_rows_on_a_cpu() -> None:
    w = torch.randn(64, 96)
    assert control_side(torch.randn(9, 96), panels([w])) == []
    assert panels([torch.randn(65, 96)]) == panels([torch.randn(64, 95)]) == panels([w.half()]) == []


def test_the_limit_is_an_empty_call_and_the_slower_of_bytes_and_products() -> None:
    limits = Limits(bandwidth=1000.0, rate=2000.0, empty=3.0)
    assert limits.us(50_000, 1000) == 53.0
    assert limits.us(1000, 20_000) == 13.0


def _settings(**changes: Any) -> ops.Settings:
    return replace(ops.Settings(SMOKE, smoke_cases()[:1], [torch.float32], [1], CPU, smoke=True), **changes)


def test_each_row_says_what_was_measured(clock: None) -> None:
    found = [row for _, rows in ops.run(_settings()) for row in rows]
    assert {row["m"] for row in found} == {1, 16}
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


def _wrong(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    kernel = BLOCK_LINEAR.kernels["cpu"]
    monkeypatch.setitem(BLOCK_LINEAR.kernels, "cpu", replace(kernel, run=lambda *args: spoil(kernel.run(*args))))


@pytest.mark.parametrize("spoil", [lambda y: y * 1.01, lambda y: y * float("nan")], ids=["scaled", "nan"])
def test_a_wrong_kernel_has_no_speedup(
    clock: None, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    _wrong(monkeypatch, spoil)
    found = [row for _, rows in ops.run(_settings()) for row in rows if row["kernel"] == "cpu"]
    assert found
    assert all(row["speedup"] is None and row["error_ratio"] > 1 for row in found)


def test_rows_can_be_asked_for_and_threads_are_given_back(clock: None) -> None:
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    found = [row for _, rows in ops.run(_settings(rows=[3], threads=[other])) for row in rows]
    assert {(row["m"], row["threads"]) for row in found} == {(3, other)}
    assert torch.get_num_threads() == before


def _run(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    code = command.main(arguments, Console(file=out, width=120))
    return code, out.getvalue()


def test_the_command_writes_a_result_file(clock: None, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ops.json"
    code, out = _run("ops", "--smoke", "--json", str(path))
    assert code == 0
    assert "geometric means over the shapes" in out
    assert str(path) in out.replace("\n", "")
    result = json.loads(path.read_text())
    assert set(result) == {"device", "commit", "date", "rows"}
    assert set(result["device"]) == {
        "name", "sm", "power_limit", "clocks", "driver", "torch", "triton", "cuda", "cpu",
    }  # fmt: skip
    assert {row["pattern"] for row in result["rows"]} == {str(case.pattern) for case in smoke_cases()}
    assert {row["dtype"] for row in result["rows"]} == {"float32", "bfloat16"}
    assert list(path.parent.iterdir()) == [path], "no half-written file is left"


def test_a_wrong_kernel_fails_the_command(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _wrong(monkeypatch, lambda y: y + 1)
    code, out = _run("ops", "--smoke", "--dtypes", "float32", "--only", "block")
    assert code == 1
    assert "wrong" in out


def test_cells_can_be_picked(clock: None) -> None:
    _, out = _run("ops", "--smoke", "--dtypes", "float32", "--only", "2:4", "--rows", "5")
    assert "block" not in out
    assert "at 1 rows" not in out


def test_results_are_kept_per_device() -> None:
    place = results.place("ops", CPU)
    assert place.name == "ops.json"
    assert place.parent.parent == results.ROOT / "results"
    assert place.parent.name == place.parent.name.lower().strip("-")


def test_the_encoder_is_the_same_in_every_run() -> None:
    state = torch.get_rng_state()
    first, again = encoder(1, 32, 2, 64), encoder(1, 32, 2, 64)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert first(torch.randn(2, 5, 32)).shape == (2, 5, 32)


def test_a_model_is_timed_beside_its_best_dense_and_checked(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ajour.planning.planner.timer_for", lambda device: _told)
    plans: list[Any] = []
    ((name, (row,)),) = list(models.run(models.smoke_subjects(), [1], CPU, 0.01, plans.append))
    assert name == "encoder 2x64 block 16x16"
    assert 0 < row["error_ratio"] <= 1
    assert (row["batch"], row["tokens"], row["dtype"]) == (1, 8, "float32")
    assert row["sparse_bytes"] < row["dense_bytes"]
    (plan,) = plans
    assert {choice.op for choice in plan.choices} == {"block_linear"}


def test_2_4_kept_in_models_is_a_half() -> None:
    assert models._kept(NM(2, 4)) == 0.5
