"""BitmapMatrix holds any weight, exactly, and refuses damaged ones by place."""

from __future__ import annotations

import pytest
import torch
from damage import Damage, drop, put, swap
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from values import DTYPES, HALVES, assert_exact, every_16_bit_value, special_values

from ajour.formats import BitmapMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM, Unstructured
from pruned import bits


def oracle(w: Tensor) -> tuple[list[float], list[list[int]], list[int]]:
    """The values, bitmaps and offsets of w, one number at a time, from the format's description."""
    n, k = w.shape
    values, bitmaps, offsets = [], [], [0]
    for tile_row in range(-(-n // 8)):
        bitmaps.append([0] * -(-k // 8))
        for tile_col in range(-(-k // 8)):
            for bit in range(64):
                row, column = tile_row * 8 + bit // 8, tile_col * 8 + bit % 8
                if row < n and column < k and w[row, column] != 0:
                    values.append(float(w[row, column]))
                    bitmaps[-1][tile_col] |= 1 << bit
            if tile_col % 8 == 7 or tile_col == -(-k // 8) - 1:
                offsets.append(len(values))
    return values, [[word - (word >> 63 << 64) for word in row] for row in bitmaps], offsets


@st.composite
def pruned_weights(draw: st.DrawFn) -> Tensor:
    n, k = draw(st.integers(0, 20)), draw(st.integers(0, 150))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(n, k) * (torch.rand(n, k) < draw(st.sampled_from((0.0, 0.1, 0.7, 1.0))))
    return w.to(draw(st.sampled_from(DTYPES)))


@given(pruned_weights())
@settings(max_examples=100, deadline=None)
def test_any_weight_is_packed_as_described_and_comes_back(w: Tensor) -> None:
    matrix = BitmapMatrix.from_dense(w)
    values, bitmaps, offsets = oracle(w)
    tensors = matrix.tensors()
    assert torch.equal(bits(matrix.values), bits(torch.tensor(values, dtype=torch.float64).to(w.dtype)))
    assert tensors["bitmaps"].tolist() == bitmaps
    assert tensors["offsets"].tolist() == offsets
    assert (tensors["bitmaps"].dtype, tensors["offsets"].dtype) == (torch.int64, torch.int32)
    assert_exact(matrix.to_dense(), w)
    again = BitmapMatrix.from_tensors(tensors, Unstructured(), matrix.shape)
    assert_exact(again.to_dense(), w)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_value_survives_at_every_place_of_a_tile(dtype: torch.dtype) -> None:
    live = torch.rand(256, 256) < 0.5
    for place in range(64):
        w = every_16_bit_value(dtype).roll((place // 8, place % 8), (0, 1))
        assert_exact(BitmapMatrix.from_dense(w).to_dense(), w)
        w = torch.where(live, w, torch.full((), -0.0, dtype=dtype))
        assert_exact(BitmapMatrix.from_dense(w).to_dense(), w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_survive_and_zeros_of_both_signs_are_not_stored(dtype: torch.dtype) -> None:
    for value in special_values(dtype):
        for place in range(64):
            w = torch.full((9, 17), -0.0, dtype=dtype)
            w[place // 8, 8 + place % 8] = value
            matrix = BitmapMatrix.from_dense(w)
            assert matrix.values.numel() == (value != 0)
            assert_exact(matrix.to_dense(), w)


def test_minus_zero_made_by_rounding_comes_back_as_plus_zero() -> None:
    rounded = BitmapMatrix.from_dense(torch.tensor([[-1e-30, 1.0]])).to(dtype=torch.float16)
    rounded.validate()
    assert_exact(rounded.to_dense(), torch.tensor([[0.0, 1.0]], dtype=torch.float16))


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0), (1, 1), (8, 64), (31, 97), (300, 1031)], ids=str)
def test_any_shape_works(shape: tuple[int, int]) -> None:
    for density in (0.0, 0.1, 1.0):
        w = torch.randn(shape) * (torch.rand(shape) < density)
        w[1:2] = 0
        matrix = BitmapMatrix.from_dense(w.t().contiguous().t())
        matrix.validate()
        assert_exact(matrix.to_dense(), w)


def test_what_is_no_weight_is_refused() -> None:
    with pytest.raises(PatternError, match=r"holds a 2-D weight of floats as Unstructured\(\), found .* as 2:4"):
        BitmapMatrix.from_dense(torch.ones(4, 4), NM(2, 4))
    with pytest.raises(PatternError, match=r"found \(4,\) torch.float32 as unstructured"):
        BitmapMatrix.from_dense(torch.ones(4))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a bit beyond k": (put("bitmaps", (0, 8), 1 << 6), "bitmaps: tile row 0, column 8 has a bit set outside the 10x70"),
    "a bit beyond n": (
        put("bitmaps", (1, 0), 1 << 16),
        "bitmaps: tile row 1, column 0 has a bit set outside the 10",
    ),
    "all bits": (put("bitmaps", (1, 8), -1), "bitmaps: tile row 1, column 8 has a bit set outside the 10x70 weight"),
    "a bit too many": (put("bitmaps", (0, 7), -1), "offsets: entry 1 is 256, but 288 bits precede it"),
    "a bit too few": (put("bitmaps", (1, 8), 0), "offsets: the last entry is 350, but 344 bits are set"),
    "offsets begin late": (put("offsets", 0, 1), "offsets: entry 0 is 1, but 0 bits precede it"),
    "negative offset": (put("offsets", 2, -5), "offsets: entry 2 is -5, but 280 bits precede it"),
    "offsets end late": (put("offsets", 4, 2**31 - 1), "offsets: the last entry is 2147483647, but 350 bits are set"),
    "a value too many": (swap("values", lambda t: t.new_ones(351)), "values: expected 350 .* that are set, found 351"),
    "a value too few": (swap("values", lambda t: t[1:]), "values: expected 350 for the bits that are set, found 349"),
    "2-D values": (swap("values", lambda t: t.view(2, 175)), r"values: expected shape \(2,\), found \(2, 175\)"),
    "a scalar": (swap("values", lambda t: t[0]), r"values: expected shape \(0,\), found \(\)"),
    "a tile too few": (swap("bitmaps", lambda t: t[:, 1:]), r"bitmaps: expected shape \(2, 9\), found \(2, 8\)"),
    "an offset too few": (swap("offsets", lambda t: t[1:]), r"offsets: expected shape \(5,\), found \(4,\)"),
    "bitmaps' dtype": (swap("bitmaps", torch.Tensor.double), "bitmaps: expected torch.int64, found torch.float64"),
    "offsets' dtype": (swap("offsets", torch.Tensor.long), "offsets: expected torch.int32, found torch.int64"),
    "values' dtype": (swap("values", torch.Tensor.bool), "values: expected torch.float32, .*, found torch.bool"),
    "no offsets": (drop("offsets"), "BitmapMatrix needs the tensors values, bitmaps, offsets; offsets is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_hostile_tensors_are_refused_by_place(name: str) -> None:
    damage, match = DAMAGES[name]
    w = torch.ones(10, 70)
    w[:, ::2] = 0
    tensors = BitmapMatrix.from_dense(w).tensors()
    assert_exact(BitmapMatrix.from_tensors(tensors, Unstructured(), (10, 70)).to_dense(), w)
    damage(tensors)
    with pytest.raises(FormatError, match=match):
        BitmapMatrix.from_tensors(tensors, Unstructured(), (10, 70))
    if len(tensors) == len(BitmapMatrix.NAMES):  # unpacking refuses the same, unvalidated
        with pytest.raises(FormatError, match=match):
            BitmapMatrix(tensors, Unstructured(), (10, 70)).to_dense()


def test_tensors_that_are_strided_or_misaligned_are_read_as_they_are() -> None:
    w = torch.randn(16, 70) * (torch.rand(16, 70) < 0.5)
    tensors = BitmapMatrix.from_dense(w).tensors()
    strided = {name: t.repeat_interleave(2, -1)[..., ::2] for name, t in tensors.items()}
    assert not strided["bitmaps"].is_contiguous()
    assert_exact(BitmapMatrix.from_tensors(strided, Unstructured(), (16, 70)).to_dense(), w)
    raw = torch.frombuffer(bytearray(b"x" + tensors["bitmaps"].numpy().tobytes()), dtype=torch.int64, offset=1)
    assert raw.data_ptr() % 8
    tensors["bitmaps"] = raw.view(2, 9)
    assert_exact(BitmapMatrix.from_tensors(tensors, Unstructured(), (16, 70)).to_dense(), w)
