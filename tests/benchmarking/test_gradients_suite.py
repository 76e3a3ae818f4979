"""Training's products are checked, and timed beside a dense layer whose gradient is masked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks import gradients, ops
from benchmarks.cases import Case, cases
from benchmarks.gradients import Layer, trained
from suites import settings

from ajour.ops.prepare import Choice
from ajour.planning.timing import Side
from ajour.terms.pattern import NM, Block


def _rows(**changes: Any) -> list[dict[str, Any]]:
    asked = settings(gradients=True, peers=False, rows=[130], **changes)
    return [row for _, rows in ops.run(asked) for row in rows if "product" in row]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_product_has_a_row(clock: None, dtype: torch.dtype) -> None:
    found = _rows(dtypes=[dtype])
    assert [row["product"] for row in found] == ["dx", "dw", "step"]
    for row in found:
        assert (row["kernel"], row["config"]) == ("cpu_blocks", "")
        assert 0 < row["error_ratio"] <= 1
        assert (row["op"], row["m"], row["mode"], row["today_us"]) == ("block_linear", 130, "eager", 200.0)
        assert (row["dense_us"], row["dense_kernel"], row["speedup"]) == (100.0, "onednn", 2.5)
    dx, dw, step = (row["bytes"] for row in found)
    assert dx == dw == step / 3


def test_a_layer_runs_what_a_plan_for_training_would_name(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product with the fastest of its configurations, found once for a cell."""
    asked = []

    def planned(cell: Any, count: int) -> list[Choice]:
        asked.append(gradients_planned(cell, count))
        return [(None, "reference", "")]

    gradients_planned = gradients.planned
    monkeypatch.setattr(gradients, "planned", planned)
    assert {row["kernel"] for row in _rows()} == {"reference"}
    assert asked == [[(None, "cpu_blocks", "")]]


@pytest.mark.parametrize("product", ["dx", "dw"])
def test_a_wrong_gradient_has_no_gain(clock: None, monkeypatch: pytest.MonkeyPatch, product: str) -> None:
    right = getattr(Layer, product)
    monkeypatch.setattr(Layer, product, lambda layer: right(layer) * 1.1)
    wrong = {row["product"] for row in _rows() if row["speedup"] is None}
    assert wrong == {product, "step"}


def test_dense_masks_its_gradient_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def clock(side: Side, first: int, count: int) -> float:
        seen.setdefault(side.name, side.calls[0]())
        return 1.0

    def measure(sides: list[Side], timer: Any, **more: Any) -> Any:
        kept.append([side.calls[0]() for side in sides])
        return real(sides, timer, **more)

    kept: list[list[Any]] = []
    real = gradients.measure
    monkeypatch.setattr(ops.Settings, "timer", lambda self, mode: clock)
    monkeypatch.setattr(gradients, "measure", measure)
    _rows()
    dx, dw, step = kept
    torch.testing.assert_close(dx[0], dx[1])
    torch.testing.assert_close(dw[0], dw[1])
    torch.testing.assert_close(step[0][1], dw[0])
    assert (dw[0] == 0).float().mean() > 0.5


def test_gradients_are_measured_for_many_rows_of_blocks_worth_training() -> None:
    assert trained(Case(Block(32, 32), 0.1, "random", ()), (1, 64, 128, 512)) == [128, 512]
    for case in (Case(NM(2, 4), 0.5, "random", ()), Case(Block(4, 1), 0.1, "random", ())):
        assert trained(case, (512,)) == []
    assert trained(replace(Case(Block(32, 32), 0.1, "random", ()), mask="skewed"), (512,)) == []
    assert any(trained(case, case.rows) for case in cases())
