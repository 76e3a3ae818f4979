"""The demo's judgement, and that it goes on aloud where no page can be drawn; `make demo` runs the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ajour import demo
from ajour.comparison import Comparison, Size, compare
from ajour.comparison.layer_times import Breakdown
from ajour.planning.timing import Timing
from factories import pruned
from hand_plan import hand_plan


@pytest.fixture(scope="module")
def compared() -> Comparison:
    model = pruned()
    examples = {"4x64": torch.randn(4, 64)}
    return compare(model, examples, plan=hand_plan(model), compiled=False, seconds=0.01, progress=False)


def case(compared: Comparison, times: Mapping[str, float], converted: float = 0.5) -> demo.Case:
    where = Breakdown({"0": 1.0}, 2.0)
    size = Size("4x64", {side: Timing(us, us, us) for side, us in times.items()}, dict.fromkeys(times, where))
    return demo.Case(replace(compared, sizes=(size,)), 0.5, converted)


def test_faster_verified_and_of_the_same_quality_is_fine(compared: Comparison) -> None:
    assert case(compared, {"stock": 200, "dense": 100, "converted": 50}).ok
    assert not case(compared, {"stock": 200, "dense": 100, "converted": 50}, converted=0.5002).ok
    slow = case(compared, {"stock": 200, "dense": 100, "converted": 125})
    assert slow.slow == ["4x64: 0.80x"]
    assert not slow.ok
    failed = replace(compared.report, failures=("0: wrong",))
    fast = case(compared, {"stock": 200, "dense": 100, "converted": 50})
    assert not replace(fast, comparison=replace(fast.comparison, report=failed)).ok


def test_it_ends_with_a_page(compared: Comparison, tmp_path: Path) -> None:
    out = StringIO()
    fast = case(compared, {"stock": 200, "dense": 100, "converted": 50})
    demo._write(Console(file=out, width=500), tmp_path / "demo.html", "an intro", [fast])
    assert f"wrote {tmp_path / 'demo.html'}" in out.getvalue()
    assert "2.00x" in (tmp_path / "demo.html").read_text()


def test_without_matplotlib_it_says_so_and_goes_on(
    compared: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ajour.comparison.charts.importlib.util.find_spec", lambda name: None)
    out = StringIO()
    demo._write(Console(file=out, width=500), tmp_path / "demo.html", "", [])
    assert "no page: a page with charts needs matplotlib; install it with" in out.getvalue()
    assert not (tmp_path / "demo.html").exists()


def test_json_is_a_list_of_comparisons(compared: Comparison) -> None:
    made = json.loads(demo.to_json([case(compared, {"stock": 200, "dense": 100, "converted": 50})]))
    assert made[0]["ok"]
    assert made[0]["agreement"] == {"pruned": 0.5, "converted": 0.5}
    assert made[0]["sizes"][0]["over_fastest_dense"] == 2.0
