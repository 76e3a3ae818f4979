"""The printed plan: everything said, and readable at any width."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ajour.planning.device import Device
from ajour.planning.plan import Choice, Measurement, Plan, RowChoice
from ajour.planning.report import clusters, gains, text
from ajour.terms.pattern import NM, Block, Dense, Unstructured

B32 = Block(32, 32)
DEVICE = Device("cpu", "A CPU", "AVX512", "2.13.0", 2)


def _m(rows: int, dense: float, today: float, sparse: float | None) -> Measurement:
    return Measurement(rows, dense, "onednn", today, sparse, None if sparse is None else "cpu", 0.04)


SPARSE = Choice(
    "encoder.layer.0.attention.self.query", (384, 384), "float32", B32, 0.2, "block_linear", B32,
    (RowChoice(None, "cpu"),), (_m(16, 30, 60, 6), _m(256, 400, 800, 80)), 589824, 118000, "5.00x over the best dense",
)  # fmt: skip
MIXED = Choice(
    "encoder.layer.0.mlp", (1536, 384), "float32", Unstructured(), 0.08, "bitmap_linear", Unstructured(),
    (RowChoice(16, "cpu", "narrow"), RowChoice(None, "onednn")), (_m(16, 130, 270, 65), _m(256, 1200, 2800, 2100)),
    2359296, 2600000, "1.05x over the best dense; dense stays at 256 rows, where it is faster",
)  # fmt: skip
DENSE = Choice(
    "head", (384, 384), "float32", NM(2, 4), 0.5, "dense_linear", Dense(), (RowChoice(None, "onednn"),),
    (_m(16, 30, 60, 31),), 589824, 589824, "cpu is slower at 16 rows: 0.97x of dense (onednn), the margin is 1.05x",
)  # fmt: skip
KEPT = Choice("lstm.weight_ih_l0", (64, 16), "float32", reason="LSTM runs its weight_ih_l0 inside one fused call")
REPEATED = tuple(
    replace(SPARSE, layer=f"encoder.layer.{i}.attention.self.{name}", measured_on=None if i == 0 else SPARSE.layer)
    for i in range(6)
    for name in ("query", "key")
)
PLAN = Plan(
    (*REPEATED, MIXED, DENSE, KEPT),
    DEVICE,
    0.05,
    1.6,
    ("head: 2:4, fast: takes bfloat16", "mlp: 2:4, fast: takes bfloat16"),
)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    assert max(map(len, text(PLAN, width).splitlines())) <= width


def test_repeated_layers_stand_together() -> None:
    page = text(PLAN, 120)
    assert "encoder.layer.*.attention.self.query (6x)\nencoder.layer.*.attention.self.key (6x)\n" in page
    assert "12 layers: 384x384 float32 · block 32x32 · 20% kept · 7.08 MB → 1.42 MB" in page
    assert [len(cluster.choices) for cluster in clusters(PLAN.choices)] == [12, 1, 1, 1]


def test_times_and_both_gains_stand_beside_each_row_count() -> None:
    lines = [line.split() for line in text(PLAN, 120).splitlines()]
    assert ["16", "cpu", "60.0", "30.0", "6.0", "5.00x", "10.00x"] in lines
    assert ["256", "cpu", "800", "400", "80.0", "5.00x", "10.00x"] in lines
    assert ["16", "cpu", "narrow", "270", "130", "65.0", "2.00x", "4.15x"] in lines


def test_a_better_dense_is_no_gain_from_sparsity() -> None:
    lines = [line.split() for line in text(PLAN, 120).splitlines()]
    assert ["256", "dense", "onednn", "2,800", "1,200", "1,200", "2.33x"] in lines
    assert "What a better dense kernel brings is in `over today` only, never in `gain`." in text(PLAN, 120)


@pytest.mark.parametrize(
    "sentence",
    [
        "Plan for A CPU (AVX512, 2 threads, torch 2.13.0)",
        "not sparse: cpu is slower at 16 rows: 0.97x of dense (onednn), the margin is 1.05x",
        "kept: LSTM runs its weight_ih_l0 inside one fused call",
        "all 15 layers: 13 become sparse, 1 stays dense on a better kernel; weights 10 MB → 4.61 MB",
        "Sparse is taken where it gains 5%; resident bytes are capped at 1.6x of dense.",
        "10 layers carry the times of a twin",
        "Not measured: 17-255 rows; there the choice for the larger number holds.",
        "head (and 1 more layers): 2:4, fast: takes bfloat16",
    ],
)
def test_the_page_says(sentence: str) -> None:
    assert sentence in text(PLAN, 120)


def test_rows_outside_the_measured_ones_are_said() -> None:
    def said(*choices: Choice) -> str:
        return " ".join(text(Plan(choices, DEVICE), 120).split())

    alone = replace(SPARSE, measurements=(_m(1, 30, 60, 6),))
    assert "Not measured: rows above 1; there the choice for the nearest measured number holds, and may" in said(alone)
    assert "Not measured: rows below 16 and above 256; there" in said(SPARSE, MIXED)
    both = said(SPARSE, replace(alone, layer="head"))
    assert "Not measured: rows below 16 and above 256 (1 layer), above 1 (1 layer); there" in both
    as_it_is = replace(DENSE, op="", stored=None, kernels=())
    assert "Not measured" not in said(as_it_is, KEPT)


def test_totals_add_up_by_row_count() -> None:
    lines = [line.split() for line in text(PLAN, 120).splitlines()]
    assert ["16", "14", "layers", "1,050", "520", "167", "3.11x", "6.29x"] in lines


def test_unsteady_times_are_said_with_what_is_certain_and_a_remedy() -> None:
    restless = replace(SPARSE.measurements[0], spread=0.8, steady=False)
    noisy = replace(SPARSE, measurements=(restless, _m(64, 100, 90, 10)))
    page = text(Plan((noisy,), DEVICE), 120)
    lines = [line.split() for line in page.splitlines()]
    assert ["16", "cpu", "unsteady", "60.0", "30.0", "6.0", "≥5.00x", "≥10.00x"] in lines
    assert ["64", "cpu", "90.0", "100", "10.0", "10.00x", "9.00x"] in lines
    assert gains(Plan((noisy,), DEVICE)) == [("16", "≥5.00x"), ("64", "10.00x")]
    said = " ".join(page.split())
    assert "1 of 2 measurements unsteady, spread up to 80%: there dense counts by its fastest turn" in said
    assert "To know, stop other programs, or give torch fewer threads" in said
    alone = text(Plan((noisy,), replace(DEVICE, threads=1)), 120)
    assert "To know, stop other programs, and measure again." in " ".join(alone.split())
    assert "unsteady" not in text(PLAN, 120)


def test_a_plan_without_layers_or_zeros_can_be_printed() -> None:
    assert "converts linear layers, and this model has none." in text(Plan((), DEVICE), 200)
    kept = text(Plan((KEPT,), DEVICE, None), 200)
    assert "this model has none that it could take (1 weight of other kinds).\n" in kept
    assert "all 1 layer: none becomes sparse\n" in kept
    assert "taken wherever a pattern fits" in kept
    assert "µs of one call" not in kept


def test_a_model_without_zeros_is_told_to_be_pruned_first() -> None:
    full = replace(DENSE, pattern=Dense(), density=1.0)
    assert "Nothing to gain yet: 2 linear layers without a single zero. Prune the model first" in text(
        Plan((full, replace(full, layer="other")), DEVICE), 200
    )
    assert "Nothing to gain" not in text(PLAN)


def test_what_was_never_timed_is_counted_and_not_listed() -> None:
    untried = ("head: 2:4, triton: runs on CUDA", "mlp: 2:4, triton: runs on CUDA", "mlp: 1:4: it was not tried")
    page = text(replace(PLAN, untried=untried), 200)
    assert "Not timed: 2 other ways to run these layers, most of them for other devices (--json says why)." in page
    assert "triton" not in page
    assert "Not timed" not in text(PLAN)


def test_print_shows_the_page() -> None:
    assert str(PLAN) == text(PLAN)
    assert "\x1b" not in str(PLAN)
