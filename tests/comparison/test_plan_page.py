"""A plan's page: every layer with its choice, the totals, and nothing that breaks out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ajour.comparison.plan_page import plan_page, write_plan_page
from ajour.planning.plan import Choice, Measurement, Plan, RowChoice
from ajour.terms.pattern import NM, Dense
from factories import pruned
from hand_plan import hand_plan

SPARSE = Choice(
    "up", (96, 64), "float32", NM(2, 4), 0.5, "nm_linear", NM(2, 4), (RowChoice(None, "cpu"),),
    (Measurement(8, 30.0, "onednn", 60.0, 10.0, "cpu"),), 24576, 13824, "3.00x over the best dense",
)  # fmt: skip


@pytest.fixture
def plan() -> Plan:
    kept = Choice("lstm", (64, 16), "float32", reason="LSTM runs its weight inside one fused call")
    return replace(hand_plan(pruned()), choices=(SPARSE, kept), notes=("<i>busy</i>",))


def test_every_layer_its_reason_and_the_totals_are_on_it(plan: Plan, tmp_path: Path) -> None:
    write_plan_page(tmp_path / "plan.html", "mine: the plan", plan)
    text = (tmp_path / "plan.html").read_text()
    for said in ("mine: the plan", "3.00x over the best dense", "fused call", "<b>3.00x</b>", "<b>1 of 2</b>", "56%"):
        assert said in text
    assert "24.6 kB → 13.8 kB" in text
    assert text.index("&lt;i&gt;busy&lt;/i&gt;") < text.index("<b>3.00x</b>"), "doubts stand before the figures"
    assert str(plan.device) in text
    assert "Not measured: rows below 8 and above 8; there the choice" in text
    assert "http" not in text


def test_a_plan_with_nothing_to_gain_says_so(plan: Plan) -> None:
    full = replace(plan, choices=(Choice("up", (96, 64), "float32", Dense(), 1.0),))
    assert "Nothing to gain yet: 1 linear layer without a single zero" in plan_page("", full)


def test_times_that_varied_are_a_warning_on_the_page(plan: Plan) -> None:
    noisy = replace(SPARSE, measurements=(replace(SPARSE.measurements[0], spread=0.8, steady=False),))
    page = plan_page("", replace(plan, choices=(noisy,)))
    assert "1 of 1 measurement unsteady, spread up to 80%" in page
    assert "at 8 rows, unsteady</small>" in page
    assert "<b>≥" in page
    assert "measurement unsteady" not in plan_page("", plan)
