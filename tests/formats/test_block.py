"""BlockMatrix holds any weight in blocks, exactly, and refuses damaged ones by place."""

from __future__ import annotations

import pytest
import torch
from damage import Damage, both, drop, put, swap
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from values import DTYPES, HALVES, assert_exact, every_16_bit_value, plus_zero, special_values

from ajour.formats import BlockMatrix
from ajour.nn import BlockLinear
from ajour.ops.functional import linear
from ajour.terms.errors import FormatError, PatternError
from ajour.terms.pattern import NM, Block
from pruned import bits, keep_mask


def oracle(w: Tensor, pattern: Block) -> dict[str, list[int] | Tensor]:
    """The canonical tensors of w, one block at a time, from the format's description."""
    (n, k), (r, c) = w.shape, (pattern.rows, pattern.cols)
    places = [(i, j) for i in range(-(-n // r)) for j in range(-(-k // c))]
    live = [(i, j) for i, j in places if (w[i * r : (i + 1) * r, j * c : (j + 1) * c] != 0).any()]
    blocks = torch.zeros(len(live), r, c, dtype=w.dtype)
    for block, (i, j) in zip(blocks, live, strict=True):
        inside = plus_zero(w[i * r : (i + 1) * r, j * c : (j + 1) * c])
        block[: inside.shape[0], : inside.shape[1]] = inside
    return {
        "blocks": blocks,
        "row_offsets": [sum(i < row for i, _ in live) for row in range(-(-n // r) + 1)],
        "columns": [j for _, j in live],
        "rows": [i for i, _ in live],
        "column_offsets": [sum(j < column for _, j in live) for column in range(-(-k // c) + 1)],
        "order": sorted(range(len(live)), key=lambda index: (live[index][1], live[index][0])),
    }


@st.composite
def pruned_weights(draw: st.DrawFn) -> tuple[Tensor, Block]:
    sides = st.one_of(st.integers(1, 9), st.sampled_from((16, 32, 64, 65, 128, 255, 256)))
    rows, cols = draw(sides), draw(sides)
    pattern = Block(rows, cols + (rows == cols == 1))
    n, k = draw(st.integers(0, 40)), draw(st.integers(0, 300))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(n, k) * keep_mask(pattern, n, k) * (torch.rand(n, k) < draw(st.sampled_from((0.05, 0.7, 1.0))))
    return w.to(draw(st.sampled_from(DTYPES))), pattern


@given(pruned_weights())
@settings(max_examples=200, deadline=None)
def test_any_weight_is_packed_as_described_and_comes_back(case: tuple[Tensor, Block]) -> None:
    w, pattern = case
    matrix = BlockMatrix.from_dense(w, pattern)
    tensors, expected = matrix.tensors(), oracle(w, pattern)
    assert torch.equal(bits(matrix.values), bits(expected.pop("blocks")))
    assert {name: tensors[name].tolist() for name in expected} == expected
    assert all(tensors[name].dtype == torch.int32 for name in expected)
    assert_exact(matrix.to_dense(), w)
    again = BlockMatrix.from_tensors(tensors, pattern, matrix.shape)
    assert_exact(again.to_dense(), w)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pattern", [Block(4, 4), Block(8, 1), Block(1, 8), Block(3, 5)], ids=str)
def test_every_16_bit_value_survives_at_every_place_of_a_block(dtype: torch.dtype, pattern: Block) -> None:
    live = torch.rand(256, 256) < 0.5
    for row in range(pattern.rows):
        for column in range(pattern.cols):
            w = every_16_bit_value(dtype).roll((row, column), (0, 1))
            assert_exact(BlockMatrix.from_dense(w, pattern).to_dense(), w)
            w = torch.where(live, w, torch.full((), -0.0, dtype=dtype))
            assert_exact(BlockMatrix.from_dense(w, pattern).to_dense(), w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_survive_and_minus_zero_becomes_plus_zero_inside_live_blocks(dtype: torch.dtype) -> None:
    for value in special_values(dtype):
        for place in range(6):
            w = torch.full((5, 7), -0.0, dtype=dtype)
            w[2 + place // 3, 3 + place % 3] = value
            matrix = BlockMatrix.from_dense(w, Block(2, 3))
            assert_exact(matrix.to_dense(), w)
            assert matrix.values.shape[0] == (value != 0)
            w[2:4, 3:6][:, 0] = 1.5
            matrix = BlockMatrix.from_dense(w, Block(2, 3))
            assert_exact(matrix.to_dense(), w)
            assert_exact(matrix.values, plus_zero(w[2:4, 3:6])[None])


def test_minus_zero_made_by_rounding_comes_back_as_plus_zero() -> None:
    w = torch.tensor([[-1e-30, 1.0]])
    rounded = BlockMatrix.from_dense(w, Block(1, 2)).to(dtype=torch.float16)
    assert bits(rounded.values).flatten().tolist() == [-(2**15), 0x3C00]
    assert_exact(rounded.to_dense(), torch.tensor([[0.0, 1.0]], dtype=torch.float16))


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0), (1, 1), (31, 97), (300, 1031)], ids=str)
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(1, 2), Block(256, 256), Block(7, 1), Block(1, 129)], ids=str)
def test_any_shape_works(shape: tuple[int, int], pattern: Block) -> None:
    for density in (0.0, 0.3, 1.0):
        w = torch.randn(shape) * keep_mask(pattern, *shape, density)
        matrix = BlockMatrix.from_dense(w.t().contiguous().t(), pattern)
        matrix.validate()
        assert_exact(matrix.to_dense(), w)


def test_what_is_no_block_weight_is_refused() -> None:
    with pytest.raises(PatternError, match=r"holds a 2-D weight of floats as a block pattern, found .* as 2:4"):
        BlockMatrix.from_dense(torch.ones(4, 4), NM(2, 4))
    with pytest.raises(PatternError, match=r"found \(2, 4, 4\) torch.float32 as block 4x4"):
        BlockMatrix.from_dense(torch.ones(2, 4, 4), Block(4, 4))
    with pytest.raises(PatternError, match=r"found \(4, 4\) torch.complex64"):
        BlockMatrix.from_dense(torch.ones(4, 4, dtype=torch.complex64), Block(4, 4))


def weight() -> Tensor:
    """A 7x10 weight of 3x4 blocks: a 3x3 grid with six live blocks, overhanging on both sides.

    Row 0 holds blocks in columns 0 and 2, row 1 in column 1, row 2 in all three.
    """
    w = torch.zeros(7, 10)
    for i, j in ((0, 0), (0, 2), (1, 1), (2, 0), (2, 1), (2, 2)):
        w[3 * i : 3 * i + 3, 4 * j : 4 * j + 4] = 1.0
    return w


DAMAGES: dict[str, tuple[Damage, str]] = {
    "row above the grid": (put("rows", 1, 3), "block 1 at row 3, column 2 lies outside the 3x3 grid"),
    "negative row": (put("rows", 0, -1), "block 0 at row -1, column 0 lies outside the 3x3 grid"),
    "column beyond the grid": (put("columns", 5, 3), "block 5 at row 2, column 3 lies outside the 3x3 grid"),
    "negative column": (put("columns", 2, -(2**31)), "block 2 at row 1, column -2147483648 lies outside the 3x3 grid"),
    "overlap": (put("columns", 4, 0), "block 4 overlaps or precedes the one before it"),
    "unsorted": (swap("columns", lambda t: t[[1, 0, 2, 3, 4, 5]]), "block 1 overlaps or precedes the one before it"),
    "rows don't agree": (put("row_offsets", 1, 1), "row_offsets: block 1 belongs to row 1, but rows says 0"),
    "offsets begin late": (put("row_offsets", 0, 1), "row_offsets: entry 0 is 1, expected 0"),
    "offsets fall": (put("row_offsets", 2, 1), "row_offsets: entry 2 is 1, less than the one before it, 2"),
    "offsets jump": (put("row_offsets", 1, 2**31 - 1), "row_offsets: entry 2 is 3, less than .*, 2147483647"),
    "offsets end early": (put("row_offsets", 3, 5), "row_offsets: the last entry is 5, but there are 6 blocks"),
    "offsets end late": (put("row_offsets", 3, 7), "row_offsets: the last entry is 7, but there are 6 blocks"),
    "columns' offsets begin late": (put("column_offsets", 0, -1), "column_offsets: entry 0 is -1, expected 0"),
    "columns' offsets fall": (put("column_offsets", 1, 5), "column_offsets: entry 2 is 4, less than .*, 5"),
    "columns' offsets end late": (put("column_offsets", 3, 9), "column_offsets: the last entry is 9, but there are 6"),
    "too few in a column": (
        both(put("column_offsets", 2, 5), put("order", 5, 1)),
        "column_offsets: column 2 has more blocks than its offsets say",
    ),
    "order out of range": (put("order", 3, 600), "order: entry 3 is 600, expected 4"),
    "negative order": (put("order", 0, -1), "order: entry 0 is -1, expected 0"),
    "order swapped": (swap("order", lambda t: t[[1, 0, 2, 3, 4, 5]]), "order: entry 0 is 3, expected 0"),
    "value beyond k": (put("blocks", (1, 0, 2), 1e-45), "blocks: block 1 holds a non-zero beyond the 7x10 weight"),
    "value beyond n": (put("blocks", (3, 1, 0), torch.nan), "blocks: block 3 holds a non-zero beyond the 7x10 weight"),
    "blocks' shape": (swap("blocks", lambda t: t.mT), r"blocks: expected shape \(6, 3, 4\), found \(6, 4, 3\)"),
    "a scalar": (swap("blocks", lambda t: t[0, 0, 0]), r"blocks: expected shape \(0, 3, 4\), found \(\)"),
    "a block too few": (swap("blocks", lambda t: t[1:]), r"columns: expected shape \(5,\), found \(6,\)"),
    "offsets' shape": (swap("row_offsets", lambda t: t[1:]), r"row_offsets: expected shape \(4,\), found \(3,\)"),
    "blocks' dtype": (swap("blocks", torch.Tensor.cfloat), "blocks: expected .*, found torch.complex64"),
    "offsets' dtype": (swap("row_offsets", torch.Tensor.long), "row_offsets: expected torch.int32, found torch.int64"),
    "no order": (drop("order"), "BlockMatrix needs the tensors .*; order is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_hostile_tensors_are_refused_by_place(name: str) -> None:
    damage, match = DAMAGES[name]
    tensors = BlockMatrix.from_dense(weight(), Block(3, 4)).tensors()
    assert_exact(BlockMatrix.from_tensors(tensors, Block(3, 4), (7, 10)).to_dense(), weight())
    damage(tensors)
    with pytest.raises(FormatError, match=match):
        BlockMatrix.from_tensors(tensors, Block(3, 4), (7, 10))


@pytest.mark.parametrize("name", ["column beyond the grid", "negative row", "overlap", "unsorted", "offsets end late"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_hostile_matrix_reaches_no_kernel(name: str, trainable: bool) -> None:
    damage, match = DAMAGES[name]
    tensors = BlockMatrix.from_dense(weight(), Block(3, 4)).tensors()
    damage(tensors)
    for matrix in (BlockMatrix(tensors, Block(3, 4), (7, 10)), BlockMatrix(tensors, Block(3, 4), (7, 10)).to("cpu")):
        with pytest.raises(FormatError, match=match):
            BlockLinear(matrix, trainable=trainable)
        with pytest.raises(FormatError, match=match):
            linear(torch.randn(2, 10), matrix)
    right = BlockMatrix(BlockMatrix.from_dense(weight(), Block(3, 4)).tensors(), Block(3, 4), (7, 10))
    BlockLinear(right, trainable=trainable)(torch.randn(2, 10))


@given(st.lists(st.integers(-2, 8), min_size=26, max_size=26))
@settings(max_examples=300, deadline=None)
def test_whatever_the_indices_say_unpacking_refuses_or_stays_inside(noise: list[int]) -> None:
    tensors = BlockMatrix.from_dense(weight(), Block(3, 4)).tensors()
    numbers = iter(noise)
    for name in BlockMatrix.NAMES[1:]:
        tensors[name] = torch.tensor([next(numbers) for _ in tensors[name]], dtype=torch.int32)
    matrix = BlockMatrix(tensors, Block(3, 4), (7, 10))
    for step in (matrix.to_dense, matrix.validate):
        with pytest.raises(FormatError):  # all right by chance in one of 10^15 draws
            step()


@pytest.mark.parametrize("shape", [(-1, 4), (4, 2**31), (4,), (4, 4.0), (True, 4)], ids=str)
def test_a_shape_that_no_weight_has_is_refused(shape: tuple[int, int]) -> None:
    tensors = BlockMatrix.from_dense(torch.ones(4, 4), Block(4, 4)).tensors()
    with pytest.raises(FormatError, match="a weight has two sides of 0 to 2147483647, found "):
        BlockMatrix.from_tensors(tensors, Block(4, 4), shape)


def test_tensors_of_another_pattern_are_refused() -> None:
    tensors = BlockMatrix.from_dense(torch.ones(4, 4), Block(4, 4)).tensors()
    with pytest.raises(FormatError, match="BlockMatrix needs a block pattern, found 2:4"):
        BlockMatrix.from_tensors(tensors, NM(2, 4), (4, 4))
    with pytest.raises(FormatError, match=r"blocks: expected shape \(1, 2, 2\), found \(1, 4, 4\)"):
        BlockMatrix.from_tensors(tensors, Block(2, 2), (4, 4))
