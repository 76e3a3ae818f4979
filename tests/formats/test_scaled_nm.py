"""ScaledNMMatrix is a weight in e4m3 with exact scales: it gives back bit for bit what it stands for, refuses more."""

from __future__ import annotations

import pytest
import torch
from damage import Damage, Tensors, both, drop, put, swap
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from values import HALVES, every_16_bit_value

from ajour.formats import NMMatrix, ScaledNMMatrix
from ajour.formats.e4m3 import E4M3, EXPONENTS, LARGEST, round_rows, rounded, row_scales, unround
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM
from pruned import bits, keep_mask

PATTERN = NM(2, 4)


def drawn(n: int, k: int, dtype: torch.dtype, spread: float = 2.0, skew: bool = False) -> Tensor:
    """A 2:4 weight whose rows differ widely in size."""
    sizes = torch.exp(torch.randn(n, 1) * spread)
    return torch.where(keep_mask(PATTERN, n, k, skew=skew), torch.randn(n, k) * sizes, 0.0).to(dtype)


def every_e4m3() -> Tensor:
    """[254]: all values but NaN, both zeros among them."""
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    return codes.view(E4M3).float()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(0, 40), k=st.integers(0, 90), dtype=st.sampled_from(HALVES), spread=st.sampled_from([0.0, 2.0, 6.0]),
    skew=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_what_it_stands_for_comes_back_bit_for_bit(
    n: int, k: int, dtype: torch.dtype, spread: float, skew: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    w = drawn(n, k, dtype, spread, skew).clamp(-5e4, 5e4)
    matrix = ScaledNMMatrix.quantize(w)
    matrix.validate()
    dense = matrix.to_dense()
    assert dense.dtype == matrix.dtype == dtype
    again = ScaledNMMatrix.from_dense(dense)
    for name, tensor in matrix.tensors().items():
        assert torch.equal(tensor.view(torch.uint8), again.tensors()[name].view(torch.uint8)), name
    loaded = ScaledNMMatrix.from_tensors(matrix.tensors(), PATTERN, matrix.shape)
    assert torch.equal(bits(loaded.to_dense()), bits(dense))
    assert torch.equal(bits(matrix.to_nm().to_dense()), bits(dense))
    assert not (dense[w == 0] != 0).any(), "a zero of the weight became something"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_is_to_the_nearest_of_all_e4m3_ties_to_even(dtype: torch.dtype) -> None:
    """Against a search through all of them, for every value of the dtype, beside one that fixes its row's scale."""
    values = every_16_bit_value(dtype).flatten()
    values = values[values.isfinite() & (values.abs() <= LARGEST)]
    rows = torch.stack([values, torch.full_like(values, LARGEST)], 1)
    scales = row_scales(rows)
    assert (scales == 1).all()
    found = round_rows(rows, scales)[:, 0].float()
    grid = every_e4m3().unique().double()
    at = torch.searchsorted(grid, values.double()).clamp(1, len(grid) - 1)
    low, high = grid[at - 1], grid[at]
    nearer = (values.double() - low) - (high - values.double())
    even = (torch.stack([low, high], 1).float().to(E4M3).view(torch.uint8) & 1 == 0)[:, 0]
    expected = torch.where(nearer == 0, torch.where(even, low, high), torch.where(nearer < 0, low, high))
    assert torch.equal(found.double(), expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scales_are_the_smallest_powers_of_two_that_hold_their_row(dtype: torch.dtype) -> None:
    """For every positive value of the dtype as the largest of a row; and every value under any scale is exact."""
    largest = every_16_bit_value(dtype).flatten()
    largest = largest[largest.isfinite() & (largest > 0)]
    scales = row_scales(torch.stack([-largest, largest / 2], 1)).double()
    low, high = (2.0**exponent for exponent in EXPONENTS[dtype])
    assert torch.equal(torch.frexp(scales)[0], torch.full_like(scales, 0.5)), "no power of two"
    assert ((scales >= low) & (scales <= high)).all()
    assert ((largest.double() <= 464 * scales) | (scales == high)).all(), "too small"
    assert ((largest.double() > 464 * scales / 2) | (scales == low)).all(), "too large"
    every = every_e4m3().expand(2, -1)
    ends = torch.tensor([low, high]).to(dtype)
    assert torch.equal(unround(every.to(E4M3), ends).double(), every.double() * ends.double().unsqueeze(1))


def test_rows_without_a_scale_become_nan_and_zeros_stay_zeros() -> None:
    rows = torch.randn(4, 8).bfloat16()
    rows[1, 3], rows[2, 0], rows[3] = float("nan"), -float("inf"), 0.0
    found = rounded(rows)
    assert found[1:3].isnan().all()
    assert (found[3] == 0).all()
    assert found[0].isfinite().all()


def test_two_of_four_takes_five_bits_a_weight() -> None:
    matrix = ScaledNMMatrix.quantize(drawn(256, 4096, torch.bfloat16))
    assert 8 * matrix.nbytes / (256 * 4096) == 5 + 16 / 4096


@pytest.mark.parametrize(
    ("w", "expected"),
    [
        (
            torch.tensor([[0.3, 0, 0, 1.0]]).bfloat16(),
            r"row 0 holds 0\.30078125, which is none \(1 of 2 .*ajour.quantize",
        ),
        (torch.tensor([[float("nan"), 0, 0, 1.0]]).bfloat16(), "can't hold NaN or Inf, found one in row 0"),
        (torch.tensor([[1.0, 1, 1, 1]]).bfloat16(), "row 0, columns 0 to 3: 2:4 allows 2 non-zeros, found 4"),
        (torch.zeros(2, 4), r"holds 2:4 in bfloat16 or float16, found torch.float32 as 2:4"),
    ],
    ids=["lossy", "nan", "not 2:4", "float32"],
)
def test_a_weight_that_does_not_fit_is_refused(w: Tensor, expected: str) -> None:
    with pytest.raises(PatternError, match=expected):
        ScaledNMMatrix.from_dense(w)


def test_quantizing_refuses_what_is_no_weight_of_this_kind() -> None:
    for w, expected in (
        (torch.tensor([[float("inf"), 0, 0, 1.0]]).half(), "NaN or Inf, found one in row 0"),
        (torch.tensor([[1e-9, 1, 1, 1e-9]]).bfloat16(), "2:4 allows 2 non-zeros, found 4"),
        (torch.zeros(2, 4).double(), "bfloat16 or float16"),
    ):
        with pytest.raises(PatternError, match=expected):
            ScaledNMMatrix.quantize(w)
    with pytest.raises(PatternError, match="as 1:4"):
        ScaledNMMatrix.from_dense(torch.zeros(2, 4).half(), NM(1, 4))
    with pytest.raises(PatternError, match="found 1:4"):
        ScaledNMMatrix.from_nm(NMMatrix.from_dense(torch.zeros(2, 4).half(), NM(1, 4)))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "nan": (put("values", (1, 2), float("nan")), "values: row 1 holds NaN"),
    "a scale that is too large": (
        swap("values", lambda v: (v.float() / 4).to(E4M3)),
        "scales: row 0 has .*smallest power of two",
    ),
    "a scale between powers": (swap("scales", lambda s: s * 1.5), "scales: row 0 has"),
    "a scale of zero": (put("scales", 2, 0.0), "scales: row 2 has 0.0"),
    "a scale of nan": (put("scales", 2, float("nan")), "scales: row 2 has nan"),
    "a negative scale": (swap("scales", lambda s: -s), "scales: row 0 has"),
    "no scales": (drop("scales"), "scales is missing"),
    "scales of another dtype": (swap("scales", lambda s: s.float()), "scales in bfloat16 or float16, found 2:4 with"),
    "too few scales": (swap("scales", lambda s: s[:-1]), r"scales: expected shape \(5,\), found \(4,\)"),
    "values of another dtype": (swap("values", lambda v: v.bfloat16()), "values: expected torch.float8_e4m3fn"),
    "an illegal code": (put("positions", (0, 0), 0), "row 0"),
    "minus zero": (both(put("values", (0, 0), 0.0), put("values", (0, 0), -0.0)), "found -0.0"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_tensors_are_refused(name: str) -> None:
    damage, expected = DAMAGES[name]
    tensors: Tensors = ScaledNMMatrix.quantize(drawn(5, 9, torch.bfloat16)).tensors()
    damage(tensors)
    with pytest.raises(FormatError, match=expected):
        ScaledNMMatrix.from_tensors(tensors, PATTERN, (5, 9))


def test_another_dtype_is_taken_only_if_it_holds_the_weight() -> None:
    w = drawn(16, 32, torch.bfloat16, spread=0.0)
    matrix = ScaledNMMatrix.quantize(w)
    half = matrix.to(dtype=torch.float16)
    assert half.dtype == torch.float16
    assert torch.equal(half.to_dense().float(), matrix.to_dense().float())
    assert torch.equal(half.to(dtype=torch.bfloat16).values.view(torch.uint8), matrix.values.view(torch.uint8))
    with pytest.raises(PatternError, match="float16 does not hold this weight"):
        ScaledNMMatrix.quantize(w * 2.0**40).to(dtype=torch.float16)
    with pytest.raises(PatternError, match="in bfloat16 or float16, not in float32"):
        matrix.to(dtype=torch.float32)
