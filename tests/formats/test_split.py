"""SplitMatrix holds any weight as the sum of two parts, exactly, and refuses parts that overlap."""

from __future__ import annotations

import pytest
import torch
from damage import Damage, drop, put, swap
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from values import DTYPES, HALVES, assert_exact, every_16_bit_value, special_values

from ajour.detect import detect
from ajour.formats import SplitMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM, Unstructured


@st.composite
def pruned_weights(draw: st.DrawFn) -> Tensor:
    n, k = draw(st.integers(0, 20)), draw(st.integers(0, 70))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(n, k) * (torch.rand(n, k) < draw(st.sampled_from((0.0, 0.3, 0.6, 1.0))))
    return w.to(draw(st.sampled_from(DTYPES)))


def first_two_of_each_group(w: Tensor) -> Tensor:
    """What the 2:4 part is said to hold, one number at a time."""
    part = torch.zeros_like(w)
    for row in range(w.shape[0]):
        for group in range(0, w.shape[1], 4):
            live = [c for c in range(group, min(group + 4, w.shape[1])) if w[row, c] != 0]
            part[row, live[:2]] = w[row, live[:2]]
    return part


@given(pruned_weights())
@settings(max_examples=100, deadline=None)
def test_any_weight_is_split_as_described_and_comes_back(w: Tensor) -> None:
    matrix = SplitMatrix.from_dense(w)
    pairs = first_two_of_each_group(w)
    assert_exact(matrix.pairs().to_dense(), pairs)
    assert_exact(matrix.rest().to_dense(), torch.where(pairs != 0, 0, w))
    assert_exact(matrix.to_dense(), w)
    assert_exact(SplitMatrix.from_tensors(matrix.tensors(), Unstructured(), matrix.shape).to_dense(), w)
    assert detect(w).beyond_two == matrix.rest().values.numel()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_value_survives_in_either_part(dtype: torch.dtype) -> None:
    for place in range(4):
        w = every_16_bit_value(dtype).roll(place, 1)
        assert_exact(SplitMatrix.from_dense(w).to_dense(), w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_survive_and_zeros_of_both_signs_come_back_as_plus_zero(dtype: torch.dtype) -> None:
    for value in special_values(dtype):
        for place in range(4):
            w = torch.full((3, 6), -0.0, dtype=dtype)
            w[:, place] = value
            w[0, :] = value
            assert_exact(SplitMatrix.from_dense(w).to_dense(), w)


def test_what_is_no_weight_is_refused() -> None:
    with pytest.raises(PatternError, match=r"SplitMatrix holds a 2-D weight of floats as Unstructured\(\), .* as 2:4"):
        SplitMatrix.from_dense(torch.ones(4, 4), NM(2, 4))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a place twice": (put("positions", (0, 0), 0xDD), "bitmaps: row 0, column 2 is set, but the 2:4 part keeps it or"),
    "before its pair": (put("positions", (1, 1), 0xE4), "bitmaps: row 1, column 14 is set, but the 2:4 part keeps"),
    "an illegal code": (put("positions", (2, 0), 0x44 | 0x05), "row 2"),
    "a bit beyond k": (put("bitmaps", (0, 2), 1 << 7), "bitmaps: tile row 0, column 2 has a bit set outside the 10x22"),
    "offsets begin late": (put("offsets", 0, 1), "offsets: entry 0 is 1, but 0 bits precede it"),
    "a value too many": (swap("values", lambda t: torch.cat((t, t[:1]))), "values: expected 100 .* found 101"),
    "too few for 2:4": (swap("values", lambda t: t[:7]), r"values: expected shape \(120,\), found \(7,\)"),
    "2-D values": (swap("values", lambda t: t.view(2, -1)), r"values: expected shape \(120,\), found \(2, 110\)"),
    "a scalar": (swap("values", lambda t: t[0]), r"values: expected shape \(120,\), found \(\)"),
    "positions' dtype": (swap("positions", Tensor.long), "positions: expected torch.uint8, found torch.int64"),
    "a position too few": (swap("positions", lambda t: t[:, 1:]), r"positions: expected shape \(10, 3\)"),
    "no bitmaps": (drop("bitmaps"), "SplitMatrix needs the tensors values, positions, bitmaps, offsets; bitmaps is"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_hostile_tensors_are_refused_by_place(name: str) -> None:
    damage, match = DAMAGES[name]
    w = torch.randn(10, 22)
    tensors = SplitMatrix.from_dense(w).tensors()
    damage(tensors)
    with pytest.raises(FormatError, match=match):
        SplitMatrix.from_tensors(tensors, Unstructured(), (10, 22))
