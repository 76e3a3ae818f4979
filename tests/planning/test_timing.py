"""Measurement is fair: sides take turns, walk through their copies, and hopeless ones stop early."""

from __future__ import annotations

import itertools

import pytest
from stand_ins import FakeWaiting

from ajour.planning.timing import (
    COLD,
    COPIES_LIMIT,
    FEWEST,
    MOST,
    PATIENCE,
    SLOT_US,
    TRIAL,
    Side,
    Timing,
    copies_needed,
    cpu_timer,
    differ,
    measure,
)


class _Clock:
    """Prices by name; remembers every turn."""

    def __init__(self, **prices: float) -> None:
        self.prices, self.turns = prices, []

    def __call__(self, side: Side, first: int, count: int) -> float:
        self.turns.append((side.name, first, count))
        return self.prices[side.name]


def _side(name: str, copies: int = 1) -> Side:
    return Side(name, [lambda: None] * copies)


def test_every_side_gets_its_own_time() -> None:
    found = measure([_side("a"), _side("b")], _Clock(a=2000.0, b=1500.0))
    assert [t.median for t in found] == [2000.0, 1500.0]
    assert all(t.spread == 0 for t in found)


def test_rounds_interleave_and_their_order_turns() -> None:
    clock = _Clock(a=2000.0, b=2100.0, c=2200.0)
    measure([_side(name) for name in "abc"], clock)
    turns = [name for name, _, count in clock.turns if count == 1][6:]  # the first six set the pace
    rounds = ["".join(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert {"abc", "bca", "cab"} <= set(rounds)


def test_short_calls_are_repeated_to_fill_a_turn() -> None:
    clock = _Clock(a=10.0)
    measure([_side("a")], clock)
    assert max(count for _, _, count in clock.turns) == SLOT_US / 10.0


def test_a_side_walks_through_its_copies_and_goes_on_where_it_stopped() -> None:
    called: list[int] = []
    side = Side("a", [lambda i=i: called.append(i) for i in range(7)])  # type: ignore[misc]
    assert cpu_timer(side, 5, 10) > 0
    assert called == [5, 6, 0, 1, 2, 3, 4, 5, 6, 0]


def test_a_turn_begins_with_an_untimed_walk_through_the_copies() -> None:
    clock = _Clock(a=100.0)
    measure([_side("a", copies=4)], clock)
    turns = clock.turns[2:]
    assert [count for _, _, count in turns[:2]] == [4, 10]
    assert turns[1][1] == turns[0][1] + 4


def test_a_hopeless_side_stops_after_its_trial_and_keeps_its_times() -> None:
    clock = _Clock(good=2000.0, bad=9000.0)
    good, bad = measure([_side("good"), _side("bad")], clock)
    assert bad.rounds == TRIAL
    assert bad.median == 9000.0
    assert good.rounds >= FEWEST
    assert measure([_side("good"), _side("bad")], clock, give_up=False)[1].rounds == good.rounds


def test_rounds_follow_the_time_at_hand() -> None:
    slow = measure([_side("a")], _Clock(a=1e6), seconds=0.5)[0]
    quick = measure([_side("a")], _Clock(a=1e3), seconds=0.5)[0]
    assert (slow.rounds, quick.rounds) == (FEWEST, MOST)


def test_turns_that_waited_for_a_core_do_not_count(waiting: FakeWaiting) -> None:
    waiting.turns = [0.0, 0.0, 0.0, 0.0, 0.0, 7950.0, 0.0, 7950.0]
    prices = itertools.chain([50.0] * 2, [50.0, 50.0] * 5, [50.0, 8000.0, 50.0, 50.0, 50.0, 8000.0])
    found = measure([_side("a")], lambda side, first, count: next(prices, 50.0))[0]
    assert (found.median, found.high, found.fastest) == (50.0, 50.0, 50.0)
    assert found.steady


def test_a_side_that_always_waits_has_no_believable_time_and_measuring_ends(waiting: FakeWaiting) -> None:
    waiting.turns = [9000.0] * 2 * MOST * PATIENCE
    clock = _Clock(a=8000.0)
    found = measure([_side("a")], clock, seconds=9.0)[0]
    assert not found.steady
    assert (found.median, found.best, found.worst) == (8000.0, 0.0, 8000.0)
    assert found.rounds == MOST * PATIENCE
    waiting.turns = [9000.0] * 2 * MOST * PATIENCE
    clock.turns.clear()
    measure([_side("a")], clock, seconds=0.01)
    assert len(clock.turns) == 2 * (2 + FEWEST)


def test_what_is_left_of_a_disturbed_time_is_the_least_it_can_be(waiting: FakeWaiting) -> None:
    waiting.turns = [900.0] * 2 * MOST * PATIENCE
    found = measure([_side("a")], _Clock(a=2000.0))[0]
    assert (found.best, found.worst, found.steady) == (1100.0, 2000.0, False)
    waiting.turns = [200.0] * 2 * MOST * PATIENCE
    found = measure([_side("a")], _Clock(a=2000.0))[0]
    assert (found.best, found.worst, found.steady) == (2000.0, 2000.0, True), "a tenth of it is no doubt worth a word"


def test_an_unsteady_side_is_measured_again_in_short_turns() -> None:
    long_turns = itertools.cycle([100.0, 900.0, 5000.0])

    def clock(side: Side, first: int, count: int) -> float:
        return 100.0 if side.name == "calm" or count * 100.0 < SLOT_US else next(long_turns)

    calm, restless = measure([_side("calm"), _side("restless")], clock, give_up=False)
    assert (calm.median, calm.steady) == (100.0, True)
    assert (restless.median, restless.steady) == (100.0, True)


def test_a_side_is_given_up_by_calm_turns_alone(waiting: FakeWaiting) -> None:
    def clock(side: Side, first: int, count: int) -> float:
        waiting.turns = [8900.0 if side.name == "stalled" else 0.0]
        return {"stalled": 9000.0, "slow": 9000.0}.get(side.name, 2000.0)

    found = measure([_side(name) for name in ("good", "stalled", "slow")], clock, seconds=9.0)
    assert found[1].rounds == MOST * PATIENCE
    assert [timing.best for timing in found] == [2000.0, 100.0, 9000.0]


def test_an_unsteady_time_counts_by_the_end_that_speaks_against_a_gain() -> None:
    calm, restless = Timing(100, 95, 105), Timing(100, 60, 140, least=40)
    assert (calm.best, calm.worst, calm.steady) == (100, 100, True)
    assert (restless.best, restless.worst, restless.steady) == (40, 140, False)
    assert not differ(calm, restless)
    assert differ(Timing(30, 29, 31), restless)
    assert not differ(Timing(41, 40, 42), restless)
    assert differ(Timing(150, 145, 155), restless), "slower for certain"
    assert not differ(restless, restless)


def test_the_median_ignores_a_stalled_round() -> None:
    prices = itertools.chain([100.0] * 8, [16000.0], itertools.repeat(100.0))
    found = measure([_side("a", 1)], lambda side, first, count: next(prices))[0]
    assert found.median == 100.0
    assert found.low == found.high == 100.0


def test_no_difference_where_the_spread_is_wider() -> None:
    calm, near, far = Timing(100, 99, 101), Timing(104, 101, 107), Timing(150, 140, 160)
    assert not differ(calm, near)
    assert differ(calm, far)
    assert differ(far, calm)


@pytest.mark.parametrize(
    ("own", "dense", "model", "cache", "copies"),
    [
        (100, 100, 100, 32 << 20, 1),  # a model of one layer finds its weights where it left them
        (2 << 20, 2 << 20, 40 << 20, 32 << 20, 20),  # one layer of twenty
        (200 << 10, 2 << 20, 40 << 20, 32 << 20, 20),  # the sparse side of it walks through as many
        (2 << 20, 2 << 20, 4 << 30, 32 << 20, 48),  # COLD caches are enough
        (64 << 20, 64 << 20, 4 << 30, 32 << 20, 2),
    ],
)
def test_weights_are_as_cold_as_the_model_leaves_them(
    own: int, dense: int, model: int, cache: int, copies: int
) -> None:
    assert copies_needed(own, dense, model, cache) == (copies, False)
    assert copies * own <= COLD * cache + own


def test_copies_are_capped_and_say_so() -> None:
    copies, capped = copies_needed(64 << 20, 64 << 20, 1 << 40, 1 << 30)
    assert capped
    assert copies * (64 << 20) <= COPIES_LIMIT
