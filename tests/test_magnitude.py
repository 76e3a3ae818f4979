"""The order in which entries stay: exact counts, ties, NaN and Inf, and block sums that don't round to ties."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ajour.magnitude import block_sums, keep_largest, largest, magnitudes, spread
from ajour.terms.pattern import Block


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=30), st.data())
def test_exactly_so_many_are_chosen_and_among_equals_the_first(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    chosen = largest(torch.tensor(scores, dtype=torch.float32), count)
    assert chosen.nonzero().flatten().tolist() == sorted(order)


def test_infinity_beats_every_finite_score_and_ties_with_nan() -> None:
    most = torch.finfo(torch.float32).max
    assert largest(torch.tensor([most, torch.inf, -torch.inf, 1.0]), 1).tolist() == [False, True, False, False]
    assert largest(torch.tensor([most, torch.inf, torch.nan]), 2).tolist() == [False, True, True]


def test_half_precision_magnitudes_are_summed_in_float32() -> None:
    w = torch.full((32, 64), 300.0, dtype=torch.float16)
    w[0, 40] = 301.0  # lost, as all sums would be infinite in float16
    kept = keep_largest(magnitudes(w), Block(32, 32), 0.5)
    assert kept[:, 32:].all()
    assert not kept[:, :32].any()


def test_blocks_that_overhang_count_what_lies_inside() -> None:
    sums = block_sums(torch.ones(5, 7), Block(4, 4))
    assert sums.tolist() == [[16.0, 12.0], [4.0, 3.0]]
    assert spread(sums > 3.5, Block(4, 4), (5, 7)).sum() == 16 + 12 + 4
