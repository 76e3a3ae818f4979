"""Block rows and block columns are listed longest first, so that programs which take them in turn end together."""

from __future__ import annotations

import pytest
import torch
from blocks import drawn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ajour.ops.block_linear.scheduled import PACKING, longest_first
from ajour.terms.pattern import Block


def dealt(lengths: list[int], order: list[int], programs: int) -> list[int]:
    """Blocks for each program, where program p takes the lists at places p, p + programs, ... of the order."""
    return [sum(lengths[i] for i in order[p::programs]) for p in range(programs)]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=300), st.integers(1, 150))
def test_no_program_has_more_than_one_longest_list_above_another(lengths: list[int], programs: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    order = longest_first(offsets)
    assert order.dtype is torch.int32
    assert sorted(order.tolist()) == list(range(len(lengths)))
    loads = dealt(lengths, order.tolist(), programs)
    assert max(loads) - min(loads) <= max(lengths)


@pytest.mark.parametrize("skew", [False, True])
def test_both_directions_of_a_packed_matrix_are_in_that_order(skew: bool) -> None:
    matrix = drawn(Block(16, 16), 1600, 800, torch.float32, density=0.2, skew=skew)
    *canonical, rows, columns = PACKING.prepack(matrix, "")
    for found, expected in zip(canonical, matrix.tensors().values(), strict=True):
        assert found is expected

    def lengths(offsets: str, order: Tensor) -> list[int]:
        return matrix.tensors()[offsets].diff()[order.long()].tolist()

    for taken in (lengths("row_offsets", rows), lengths("column_offsets", columns)):
        assert taken == sorted(taken, reverse=True)
        assert taken[0] > taken[-1]
    as_they_stand, longest = matrix.tensors()["row_offsets"].diff().tolist(), rows.tolist()
    loads = dealt(as_they_stand, longest, 16)
    assert max(loads) <= sum(loads) / 16 + as_they_stand[longest[0]]
