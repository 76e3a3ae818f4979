"""From times to a choice: sparse must win by the margin, memory caps forms, and no measured row count loses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ajour.planning.choosing import Decision, Timed, Times, decide
from ajour.planning.plan import DENSE_KERNELS, RowChoice, serving
from ajour.planning.timing import Timing
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured

B32 = Block(32, 32)
BYTES = 1000


def _t(median: float, spread: float = 0.01) -> Timing:
    return Timing(median, median * (1 - spread / 2), median * (1 + spread / 2))


def _times(today: dict[int, float], onednn: dict[int, float] | None = None, *sparse: Timed) -> Times:
    dense = {m: {} if onednn is None else {"onednn": _t(onednn[m])} for m in today}
    return Times({m: _t(us) for m, us in today.items()}, dense, sparse)


def _timed(
    times: dict[int, float], kernel: str = "cpu", config: str = "", packing: str = "panels", nbytes: int = 200,
    stored: Pattern = B32, op: str = "block_linear",
) -> Timed:  # fmt: skip
    return Timed(op, stored, kernel, config, packing, nbytes, {m: _t(us) for m, us in times.items()})


def _sparse_at(m: int, timing: Timing) -> Timed:
    return Timed("block_linear", B32, "cpu", "", "panels", 200, {m: timing})


def _kernels(decision: Decision) -> list[tuple[int | None, str, str]]:
    return [(entry.limit, entry.kernel, entry.config) for entry in decision.kernels]


def test_sparse_that_wins_is_taken() -> None:
    found = decide(_times({8: 100}, {8: 60}, _timed({8: 20})), BYTES, 0.05, 1.0)
    assert (found.op, found.stored, found.nbytes) == ("block_linear", B32, 200)
    assert _kernels(found) == [(None, "cpu", "")]
    assert found.reason == "3.00x over the best dense"
    (m,) = found.measurements
    assert (m.today_us, m.dense_us, m.dense_kernel, m.sparse_us, m.sparse_kernel) == (100, 60, "onednn", 20, "cpu")


@pytest.mark.parametrize(("margin", "taken"), [(0.05, False), (0.01, True), (0.3, False)])
def test_sparse_must_beat_the_best_dense_by_the_margin(margin: float, taken: bool) -> None:
    found = decide(_times({8: 100}, {8: 51}, _timed({8: 49.5})), BYTES, margin, 1.0)
    assert (found.op == "block_linear") is taken


def test_beating_only_the_dense_of_today_is_no_reason_for_sparse() -> None:
    found = decide(_times({8: 100}, {8: 50}, _timed({8: 60})), BYTES, 0.05, 1.0)
    assert found.op == "dense_linear"
    assert found.stored == Dense()
    assert _kernels(found) == [(None, "onednn", "")]
    assert found.reason == "cpu is slower at 8 rows: 0.83x of dense (onednn), the margin is 1.05x"


def test_a_gain_within_the_spread_is_no_difference() -> None:
    found = decide(_times({8: 100}, None, _sparse_at(8, _t(80, 0.3))), BYTES, 0.05, 1.0)
    assert found.op == ""
    assert found.reason == "no difference at 8 rows: cpu 1.25x, within the spread"
    assert found.measurements[0].spread == 0.3
    assert found.measurements[0].steady


def test_sparse_is_never_chosen_on_the_strength_of_an_unsteady_dense() -> None:
    stalled = Timing(8000, 7000, 9000, least=45)
    found = decide(Times({8: stalled}, {8: {"onednn": stalled}}, (_sparse_at(8, _t(44)),)), BYTES, 0.05, 1.0)
    assert (found.op, found.kernels) == ("", ())
    assert found.reason == "unsteady times at 8 rows: cpu at its slowest is 1.02x of dense (aten) at its fastest"
    (m,) = found.measurements
    assert (m.dense_us, m.today_us, m.sparse_us, m.steady) == (45, 45, 44, False)


def test_of_unsteady_times_only_the_certain_gain_is_told() -> None:
    restless = Timing(100, 60, 200, least=60)
    found = decide(Times({8: restless}, {8: {}}, (_sparse_at(8, Timing(10, 8, 20)),)), BYTES, 0.05, 1.0)
    assert found.op == "block_linear"
    assert found.reason == "at least 3.00x over the best dense"
    (m,) = found.measurements
    assert (m.dense_us, m.sparse_us, m.steady) == (60, 20, False)


def test_another_dense_must_beat_todays_for_certain_too() -> None:
    today, other = Timing(900, 100, 1000), Timing(80, 78, 82)
    assert decide(Times({8: today}, {8: {"onednn": other}}, ()), BYTES, 0.05, 1.0).op == "dense_linear"
    assert decide(Times({8: replace(today, least=81)}, {8: {"onednn": other}}, ()), BYTES, 0.05, 1.0).op == ""


@pytest.mark.parametrize("margin", [0.05, None])
def test_a_dense_that_never_ran_undisturbed_proves_no_gain(margin: float | None) -> None:
    stalled = Timing(8000, 8000, 8000, least=0)
    found = decide(Times({8: stalled}, {8: {}}, (_sparse_at(8, _t(44)),)), BYTES, margin, 1.0)
    (m,) = found.measurements
    assert (m.dense_us, m.sparse_us, m.steady) == (44, 44, False)
    if margin is None:
        assert (found.op, found.reason) == ("block_linear", "at least 1.00x over the best dense")
    else:
        assert found.op == ""
        assert found.reason == "dense (aten) never had its cores to itself at 8 rows, so no time of it can be believed"


def test_an_unsteady_candidate_that_might_have_won_is_the_one_to_speak_of() -> None:
    stalled = Timed("block_linear", B32, "quick", "", "panels", 200, {8: Timing(20, 18, 9000)})
    found = decide(Times({8: _t(100)}, {8: {}}, (_sparse_at(8, _t(110)), stalled)), BYTES, 0.05, 1.0)
    assert found.reason == "unsteady times at 8 rows: quick at its slowest is 0.01x of dense (aten) at its fastest"
    assert (found.measurements[0].sparse_kernel, found.measurements[0].steady) == ("quick", False)


def test_one_doubtful_number_of_rows_is_the_reason_though_sparse_wins_at_another() -> None:
    restless = Timing(100, 60, 200, least=60)
    times = Times({1: _t(100), 8: restless}, {1: {}, 8: {}}, (_timed({1: 20, 8: 70}),))
    assert decide(times, BYTES, 0.05, 1.0).reason.startswith("unsteady times at 8 rows: cpu at its slowest is 0.86x")


def test_a_margin_of_none_takes_the_best_sparse_though_it_loses() -> None:
    found = decide(_times({8: 100}, None, _timed({8: 900}), _timed({8: 700}, "other")), BYTES, None, 1.0)
    assert _kernels(found) == [(None, "other", "")]


def test_a_layer_that_dense_serves_as_well_stays_as_it_is() -> None:
    found = decide(_times({8: 100}, {8: 98}), BYTES, 0.05, 1.0, "no zeros to use")
    assert (found.op, found.stored, found.kernels, found.nbytes) == ("", None, (), BYTES)
    assert found.reason == "no zeros to use"


def test_a_better_dense_is_taken_only_for_the_rows_where_it_is_better() -> None:
    found = decide(_times({1: 10, 64: 100, 512: 1000}, {1: 12, 64: 50, 512: 450}), BYTES, 0.05, 1.0)
    assert _kernels(found) == [(1, "aten", ""), (None, "onednn", "")]
    assert [m.dense_kernel for m in found.measurements] == ["aten", "onednn", "onednn"]


def test_rows_that_disagree_get_both_forms_where_memory_has_room() -> None:
    times = _times({1: 100, 512: 1000}, None, _timed({1: 20, 512: 3000}))
    found = decide(times, BYTES, 0.05, 1.2)
    assert _kernels(found) == [(1, "cpu", ""), (None, "aten", "")]
    assert found.nbytes == 1200
    assert "dense stays at 512 rows" in found.reason


def test_without_room_a_form_that_loses_somewhere_is_not_taken() -> None:
    times = _times({1: 100, 512: 1000}, None, _timed({1: 20, 512: 1001}))
    found = decide(times, BYTES, 0.05, 1.19)
    assert found.op == ""
    assert found.reason == (
        "cpu wins at 1 row (5.00x) and dense at others; memory=1.19 has no room for both forms, memory=1.20 would"
    )


def test_without_room_one_form_serves_all_rows_if_it_loses_nowhere() -> None:
    times = _times({1: 100, 512: 1000}, None, _timed({1: 20, 512: 990}))
    found = decide(times, BYTES, 0.05, 1.0)
    assert _kernels(found) == [(None, "cpu", "")]
    assert found.nbytes == 200


def test_without_room_the_form_with_the_smaller_sum_serves_all_rows() -> None:
    few = _timed({1: 10, 512: 900}, "few", packing="a", nbytes=600)
    many = _timed({1: 40, 512: 200}, "many", packing="b", nbytes=600)
    times = _times({1: 100, 512: 1000}, None, few, many)
    assert _kernels(decide(times, BYTES, 0.05, 1.0)) == [(None, "many", "")]
    assert _kernels(decide(times, BYTES, 0.05, 1.2)) == [(1, "few", ""), (None, "many", "")]


def test_configurations_of_one_packed_form_count_once() -> None:
    few = _timed({1: 10, 64: 90}, "cuda_decode", "c2 s4", "nm_slabs", 600)
    many = _timed({1: 40, 64: 20}, "cuda_decode", "c1 s8", "nm_slabs", 600)
    found = decide(_times({1: 100, 64: 100}, None, few, many), BYTES, 0.05, 1.0)
    assert found.nbytes == 600
    assert _kernels(found) == [(1, "cuda_decode", "c2 s4"), (None, "cuda_decode", "c1 s8")]


def test_kernels_of_one_packing_count_once() -> None:
    few = _timed({1: 10, 512: 900}, "few", nbytes=600)
    many = _timed({1: 40, 512: 200}, "many", nbytes=600)
    found = decide(_times({1: 100, 512: 1000}, None, few, many), BYTES, 0.05, 0.6)
    assert _kernels(found) == [(1, "few", ""), (None, "many", "")]
    assert found.nbytes == 600


def test_a_form_bigger_than_the_cap_is_refused_and_the_reason_says_so() -> None:
    found = decide(_times({8: 100}, None, _timed({8: 20}, nbytes=900)), BYTES, 0.05, 0.5)
    assert found.op == ""
    assert found.reason == "cpu wins at 8 rows (5.00x), but its 0.90 of dense's bytes exceed memory=0.5"


def test_between_measured_rows_the_larger_ones_choice_holds() -> None:
    times = _times({1: 100, 64: 100, 512: 1000}, None, _timed({1: 20, 64: 300, 512: 100}))
    found = decide(times, BYTES, 0.05, 2.0)
    assert [entry.kernel for m in (1, 2, 64, 65, 9999) if (entry := serving(found.kernels, m))] == [
        "cpu", "aten", "aten", "cpu", "cpu",
    ]  # fmt: skip


def test_one_layer_holds_one_matrix() -> None:
    block = _timed({1: 50, 512: 100})
    bitmap = _timed({1: 10, 512: 900}, stored=Unstructured(), op="bitmap_linear", packing="tiles")
    found = decide(_times({1: 100, 512: 1000}, None, block, bitmap), BYTES, 0.05, 9.0)
    assert (found.op, found.stored) == ("block_linear", B32), "the sum is what counts: 150 against 910"


def test_of_two_as_fast_the_smaller_is_taken() -> None:
    small, large = (
        _timed({8: 20.2}, "small", packing="a", nbytes=100),
        _timed({8: 20}, "large", packing="b", nbytes=300),
    )
    assert _kernels(decide(_times({8: 100}, None, small, large), BYTES, 0.05, 1.0)) == [(None, "small", "")]


def test_a_kernel_that_takes_only_some_rows_needs_another_for_the_rest() -> None:
    few = _timed({1: 10}, "few", nbytes=300)
    times = _times({1: 100, 512: 1000}, None, few)
    assert decide(times, BYTES, 0.05, 1.0).op == ""
    assert _kernels(decide(times, BYTES, 0.05, 1.3)) == [(1, "few", ""), (None, "aten", "")]
    assert decide(times, BYTES, None, 9.0).reason == "no one form serves every number of rows"


us = st.floats(1, 1e4)
ROWS = (1, 16, 256)
candidates = st.builds(
    lambda values, kernel, packing, nbytes, stored: _timed(
        dict(zip(ROWS, values, strict=True)), kernel, "", packing, nbytes, *stored
    ),
    st.tuples(us, us, us),
    st.sampled_from("abc"),
    st.sampled_from(["p", "q"]),
    st.integers(1, 2000),
    st.sampled_from([(B32, "block_linear"), (NM(2, 4), "nm_linear")]),
)


@given(
    st.tuples(us, us, us),
    st.tuples(us, us, us),
    st.lists(candidates, max_size=5, unique_by=lambda t: (t.op, t.kernel, t.packing)),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.floats(0.1, 4),
)
def test_no_choice_loses_at_a_measured_row_count_or_exceeds_memory(
    today: tuple[float, ...], onednn: tuple[float, ...], sparse: list[Timed], margin: float, memory: float
) -> None:
    times = _times(dict(zip(ROWS, today, strict=True)), dict(zip(ROWS, onednn, strict=True)), *sparse)
    found = decide(times, BYTES, margin, memory)
    if found.op in ("", "dense_linear"):
        assert found.nbytes == BYTES
        return
    assert found.nbytes <= memory * BYTES
    assert any(entry.kernel not in DENSE_KERNELS for entry in found.kernels)
    for m in ROWS:
        entry = serving(found.kernels, m)
        assert isinstance(entry, RowChoice)
        if entry.kernel not in DENSE_KERNELS:
            mine = [t for t in sparse if (t.op, t.kernel, t.config) == (found.op, entry.kernel, entry.config)]
            assert min(t.times[m].median for t in mine) <= times.best_dense(m)[1].median
