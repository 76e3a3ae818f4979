"""Measurement is fair: sides take turns, walk through their copies, and hopeless ones stop early."""

from __future__ import annotations

import itertools

import pytest

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


def test_restless_times_get_more_rounds_but_not_for_ever() -> None:
    restless = itertools.cycle([1000.0, 2000.0, 3000.0])
    found = measure([_side("a")], lambda side, first, count: next(restless), seconds=9.0)[0]
    assert MOST < found.rounds <= MOST * PATIENCE
    slow = itertools.cycle([1e6, 2e6, 3e6])
    assert measure([_side("a")], lambda side, first, count: next(slow), seconds=1.0)[0].rounds == FEWEST


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
