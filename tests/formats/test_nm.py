"""NMMatrix holds what fits, exactly, and names what doesn't."""

from __future__ import annotations

import itertools

import pytest
import torch
from damage import Damage, drop, put, swap
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from values import DTYPES, HALVES, assert_exact, every_16_bit_value, special_values

from ajour.formats import NMMatrix
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM, Block, Pattern
from pruned import bits, keep_mask


def oracle(w: Tensor, pattern: NM) -> tuple[list[list[float]], list[list[int]]]:
    """The values and the position bytes of w, one number at a time, from the format's description."""
    k, keep, group = w.shape[1], pattern.keep, pattern.group
    width = (group - 1).bit_length()
    values, positions = [], []
    for row in w.double().tolist():
        kept_row, stream = [], 0
        for begin in range(0, k, group):
            inside = row[begin : begin + group] + [0.0] * max(0, begin + group - k)
            live = [p for p in range(group) if inside[p] != 0]
            free = [p for p in range(group) if inside[p] == 0]
            for position in sorted(live + free[: keep - len(live)]):
                stream |= position << width * len(kept_row)
                kept_row.append(inside[position] or 0.0)
        values.append(kept_row)
        positions.append(list(stream.to_bytes(-(-len(kept_row) * width // 8), "little")))
    return values, positions


@st.composite
def pruned_weights(draw: st.DrawFn) -> tuple[Tensor, NM]:
    group = draw(st.integers(2, 32))
    pattern = NM(draw(st.integers(1, group - 1)), group)
    n, k = draw(st.integers(0, 12)), draw(st.integers(0, 100))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(n, k) * keep_mask(pattern, n, k) * (torch.rand(n, k) < draw(st.sampled_from((0.1, 0.7, 1.0))))
    return w.to(draw(st.sampled_from(DTYPES))), pattern


@given(pruned_weights())
@settings(max_examples=300, deadline=None)
def test_any_weight_that_fits_is_packed_as_described_and_comes_back(case: tuple[Tensor, NM]) -> None:
    w, pattern = case
    matrix = NMMatrix.from_dense(w, pattern)
    values, positions = oracle(w, pattern)
    kept = -(-w.shape[1] // pattern.group) * pattern.keep
    expected = torch.tensor(values, dtype=torch.float64).view(w.shape[0], kept).to(w.dtype)
    assert torch.equal(bits(matrix.values), bits(expected))
    assert matrix.tensors()["positions"].tolist() == positions
    matrix.validate()
    assert_exact(matrix.to_dense(), w)
    again = NMMatrix.from_tensors(matrix.tensors(), pattern, matrix.shape)
    assert_exact(again.to_dense(), w)


def test_2_4_writes_the_six_legal_codes() -> None:
    kept = {(0, 1): 0x4, (0, 2): 0x8, (1, 2): 0x9, (0, 3): 0xC, (1, 3): 0xD, (2, 3): 0xE}
    assert set(kept) == set(itertools.combinations(range(4), 2))
    for (first, second), code in kept.items():
        w = torch.zeros(1, 8)
        w[0, first], w[0, second] = 1.0, 2.0  # one group of interest, one of zeros, which writes the code 4
        matrix = NMMatrix.from_dense(w, NM(2, 4))
        assert matrix.tensors()["positions"].tolist() == [[code | 0x40]], (first, second)
        assert matrix.values.tolist() == [[1.0, 2.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("row", "code", "values"),
    [
        ((0, 0, 0, 5), 0xC, [0, 5]),
        ((0, 5, 0, 0), 0x4, [0, 5]),
        ((5, 0, 0, 0), 0x4, [5, 0]),
        ((0, 0, 5, 0), 0x8, [0, 5]),
        ((-0.0, 0, 0, 0), 0x4, [0, 0]),
    ],
    ids=str,
)
def test_a_group_with_fewer_nonzeros_keeps_its_first_free_places(
    row: tuple[float, ...], code: int, values: list[float]
) -> None:
    matrix = NMMatrix.from_dense(torch.tensor([row], dtype=torch.float32), NM(2, 4))
    assert matrix.tensors()["positions"].tolist() == [[code]]
    assert_exact(matrix.values, torch.tensor([values], dtype=torch.float32))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(3, 5), NM(7, 8)], ids=str)
def test_every_16_bit_value_survives_at_every_place_of_a_group(dtype: torch.dtype, pattern: NM) -> None:
    groups = 256 // pattern.group
    for shift in range(pattern.group if 256 % pattern.group == 0 else 2 * pattern.group):  # each value to each place
        w = every_16_bit_value(dtype).roll(shift, 1)[:, : groups * pattern.group]
        for places in itertools.combinations(range(pattern.group), pattern.keep):
            kept = torch.zeros(pattern.group, dtype=torch.bool).index_fill_(0, torch.tensor(places), True)
            pruned = torch.where(kept.repeat(groups), w, torch.zeros((), dtype=dtype))
            assert_exact(NMMatrix.from_dense(pruned, pattern).to_dense(), pruned)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_survive_at_every_place(dtype: torch.dtype) -> None:
    for value in special_values(dtype):
        for pair in itertools.permutations(range(4), 2):
            w = torch.zeros(3, 12, dtype=dtype)
            w[1, 4 + pair[0]], w[1, 4 + pair[1]] = value, -1.5
            assert_exact(NMMatrix.from_dense(w, NM(2, 4)).to_dense(), w)


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0), (1, 1), (1, 4), (5, 3), (31, 97), (300, 1031)], ids=str)
@pytest.mark.parametrize("pattern", [NM(1, 2), NM(2, 4), NM(6, 7), NM(31, 32)], ids=str)
def test_any_shape_works(shape: tuple[int, int], pattern: NM) -> None:
    w = torch.randn(shape) * keep_mask(pattern, *shape)
    w[::3] = 0
    matrix = NMMatrix.from_dense(w, pattern)
    matrix.validate()
    assert matrix.shape == shape
    assert_exact(matrix.to_dense(), w)


def test_a_strided_weight_and_one_with_a_graph_are_packed() -> None:
    w = (torch.randn(12, 8) * keep_mask(NM(2, 4), 12, 8)).requires_grad_()
    strided = w.detach().t().contiguous().t()
    assert not strided.is_contiguous()
    for same in (w, strided, torch.nn.Parameter(w.detach())):
        matrix = NMMatrix.from_dense(same, NM(2, 4))
        assert not matrix.values.requires_grad
        assert_exact(matrix.to_dense(), w.detach())


def test_a_weight_that_does_not_fit_is_refused_at_its_first_bad_group() -> None:
    w = torch.zeros(400, 2000)
    w[[399, 250, 250, 301], 0], w[250, 8:11], w[250, 1996:2000] = 1.0, 1.0, torch.nan
    with pytest.raises(PatternError, match=r"^row 250, columns 8 to 11: 2:4 allows 2 non-zeros, found 3$"):
        NMMatrix.from_dense(w, NM(2, 4))
    w[250, 8:11] = -0.0
    with pytest.raises(PatternError, match=r"^row 250, columns 1996 to 1999: 2:4 allows 2 non-zeros, found 4$"):
        NMMatrix.from_dense(w, NM(2, 4))
    with pytest.raises(PatternError, match=r"^row 0, columns 5 to 6: 1:5 allows 1 non-zeros, found 2$"):
        NMMatrix.from_dense(torch.tensor([[1.0, 0, 0, 0, 0, 2, 3]]), NM(1, 5))


@pytest.mark.parametrize(
    ("w", "pattern", "match"),
    [
        (torch.ones(4), NM(2, 4), r"holds a 2-D weight of floats as an N:M pattern, found \(4,\) torch.float32 as 2:4"),
        (torch.ones(4, 4, dtype=torch.int32), NM(2, 4), "found .* torch.int32 as 2:4"),
        (torch.ones(4, 4), Block(4, 4), "found .* as block 4x4"),
        (torch.ones(4, 4, device="meta"), NM(2, 4), "is on the meta device, without values; load them first"),
        (torch.ones(4, 4).to_sparse(), NM(2, 4), "has the layout torch.sparse_coo; make it a plain one"),
    ],
    ids=["1-D", "int32", "block", "meta", "sparse"],
)
def test_what_is_no_weight_is_refused(w: Tensor, pattern: Pattern, match: str) -> None:
    with pytest.raises(PatternError, match=match):
        NMMatrix.from_dense(w, pattern)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "equal positions": (
        put("positions", (3, 1), 0x55),
        r"positions: row 3, group 2 holds \[1, 1\], no legal 2:4 code",
    ),
    "falling positions": (put("positions", (3, 0), 0x14), r"positions: row 3, group 1 holds \[1, 0\], no legal 2:4"),
    "a bit after the last": (put("positions", (4, 1), 0x44), "positions: row 4 has bits set after its last position"),
    "a value beyond k": (put("values", (2, 5), 1e-45), "values: row 2, group 2 holds a non-zero beyond column 8"),
    "a NaN beyond k": (put("values", (2, 5), torch.nan), "values: row 2, group 2 holds a non-zero beyond column 8"),
    "values' shape": (swap("values", lambda t: t[:, :-1]), r"values: expected shape \(5, 6\), found \(5, 5\)"),
    "positions' shape": (
        swap("positions", lambda t: t.flatten()),
        r"positions: expected shape \(5, 2\), found \(10",
    ),
    "values' dtype": (swap("values", torch.Tensor.int), "values: expected torch.float32, .*, found torch.int32"),
    "positions' dtype": (swap("positions", torch.Tensor.char), "positions: expected torch.uint8, found torch.int8"),
    "positions' device": (swap("positions", lambda t: t.to("meta")), "positions is on the meta device"),
    "a list": (swap("positions", torch.Tensor.tolist), "positions: expected a tensor, found a list"),
    "sparse values": (swap("values", torch.Tensor.to_sparse), "values has the layout torch.sparse_coo"),
    "no positions": (drop("positions"), "NMMatrix needs .*; positions is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_hostile_tensors_are_refused_by_place(name: str) -> None:
    damage, match = DAMAGES[name]
    w = torch.zeros(5, 9)
    w[:, ::3] = 1.0
    tensors = NMMatrix.from_dense(w, NM(2, 4)).tensors()
    assert_exact(NMMatrix.from_tensors(tensors, NM(2, 4), (5, 9)).to_dense(), w)
    damage(tensors)
    with pytest.raises(FormatError, match=match):
        NMMatrix.from_tensors(tensors, NM(2, 4), (5, 9))


def test_positions_outside_a_group_that_is_no_power_of_two_are_refused() -> None:
    tensors = NMMatrix.from_dense(torch.tensor([[0.0, 0, 0, 0, 1]]), NM(1, 5)).tensors()
    assert tensors["positions"].tolist() == [[4]]
    for code in (5, 6, 7):
        tensors["positions"][0, 0] = code
        with pytest.raises(FormatError, match=rf"positions: row 0, group 0 holds \[{code}\], no legal 1:5 code"):
            NMMatrix.from_tensors(tensors, NM(1, 5), (1, 5))


@given(st.binary(min_size=24, max_size=24), st.sampled_from([NM(1, 2), NM(2, 4), NM(3, 5), NM(5, 7)]))
@settings(max_examples=200, deadline=None)
def test_whatever_the_positions_say_nothing_crashes(noise: bytes, pattern: NM) -> None:
    k = 11
    kept = -(-k // pattern.group) * pattern.keep
    width = -(-kept * (pattern.group - 1).bit_length() // 8)
    positions = torch.tensor(list(noise[: 2 * width]), dtype=torch.uint8).view(2, width)
    tensors = {"values": torch.randn(2, kept), "positions": positions}
    matrix = NMMatrix(tensors, pattern, (2, k))
    w = matrix.to_dense()  # not validated: what comes out may be anything, but nothing else is touched
    assert w.shape == (2, k)
    try:
        matrix.validate()
    except FormatError:
        return
    assert_exact(NMMatrix.from_dense(w, pattern).to_dense(), w)


def test_unpacked_positions_are_those_of_the_kept_values() -> None:
    w = torch.randn(6, 20) * keep_mask(NM(3, 5), 6, 20)
    matrix = NMMatrix.from_dense(w, NM(3, 5))
    found = w.view(6, 4, 5).gather(-1, matrix.positions())
    assert torch.equal(found.flatten(1), matrix.values)
