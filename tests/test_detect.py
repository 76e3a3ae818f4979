"""Detection: every exact pattern of a weight, and no other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from ajour.detect import detect
from ajour.formats import BitmapMatrix, BlockMatrix, NMMatrix
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from pruned import keep_mask

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIZES = [(r, 1) for r in (4, 8, 16, 32)] + [(1, c) for c in (4, 8, 16, 32)] + [(s, s) for s in (4, 8, 16, 32, 64, 128)]


def nonzeros(*shape: int) -> Tensor:
    """Random normal without a zero, which torch.randn gives once in 16 million."""
    w = torch.randn(shape)
    return torch.where(w == 0, torch.ones(()), w)


def exactly_nm(n: int, k: int, keep: int, group: int) -> Tensor:
    """Each whole group holds exactly `keep` non-zeros, somewhere."""
    return nonzeros(n, k) * keep_mask(NM(keep, group), n, k)


@st.composite
def any_weights(draw: st.DrawFn) -> Tensor:
    n, k = draw(st.integers(0, 300)), draw(st.integers(0, 150))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    pattern = draw(st.sampled_from((Unstructured(), NM(2, 4), Block(8, 8), Block(4, 1), Block(64, 64))))
    density = draw(st.sampled_from((0.0, 0.02, 0.5, 1.0)))
    w = nonzeros(n, k) * keep_mask(pattern, n, k, density)
    return torch.where(w == 0, torch.where(torch.rand(n, k) < 0.5, 0.0, -0.0), w).to(draw(st.sampled_from(DTYPES)))


@given(any_weights())
@settings(max_examples=100, deadline=None)
def test_every_number_of_a_detection_is_the_counted_one(w: Tensor) -> None:
    found, live = detect(w), w != 0
    n, k = w.shape
    assert found.shape == (n, k)
    assert found.dtype == str(w.dtype).removeprefix("torch.")
    assert found.nonzeros == int(live.sum())
    assert found.density == (found.nonzeros / (n * k) if n * k else 0.0)
    assert found.zero_rows == int((~live.any(1)).sum())
    assert found.zero_cols == int((~live.any(0)).sum())
    for group, most in found.keeps.items():
        counts = pad(live, (0, -k % group)).view(n, -(-k // group), group).sum(-1)
        assert most == (int(counts.max()) if counts.numel() else 0)
    assert tuple(found.keeps) == (2, 4, 8, 16, 32)
    for (rows, cols), count in found.live_blocks.items():
        grid = pad(live, (0, -k % cols, 0, -n % rows)).view(-(-n // rows), rows, -(-k // cols), cols)
        assert count == int(grid.any(3).any(1).sum())
    assert sorted(found.live_blocks) == sorted(SIZES)


@given(any_weights())
@settings(max_examples=100, deadline=None)
def test_every_pattern_found_is_exact(w: Tensor) -> None:
    found = detect(w)
    assert found.pattern == found.patterns[0]
    assert found.patterns[-1] == Dense()
    assert len(set(found.patterns)) == len(found.patterns)
    assert (Unstructured() in found.patterns) == (found.nonzeros < w.numel())
    for pattern in found.patterns:
        if isinstance(pattern, NM):
            assert torch.equal(NMMatrix.from_dense(w, pattern).to_dense(), w)
            if pattern.keep > 1:
                with pytest.raises(PatternError):
                    NMMatrix.from_dense(w, NM(pattern.keep - 1, pattern.group))
        elif isinstance(pattern, Block):
            matrix = BlockMatrix.from_dense(w, pattern)
            assert torch.equal(matrix.to_dense(), w)
            assert matrix.values.shape[0] == found.live_blocks[pattern.rows, pattern.cols]
        elif isinstance(pattern, Unstructured):
            assert torch.equal(BitmapMatrix.from_dense(w).to_dense(), w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("keep", "group", "expected"),
    [
        (2, 4, (NM(2, 4), Unstructured(), Dense())),  # 4:8, 8:16 and 16:32 follow from it
        (1, 2, (NM(1, 2), Unstructured(), Dense())),
        (1, 4, (NM(1, 4), Unstructured(), NM(1, 2), Dense())),
        (4, 8, (NM(4, 8), Unstructured(), Dense())),
        (2, 8, (NM(2, 8), Unstructured(), NM(2, 4), Dense())),
        (8, 32, (NM(8, 32), Unstructured(), Dense())),
        (7, 8, (NM(7, 8), Unstructured(), Dense())),
    ],
    ids=str,
)
def test_nm_patterns_are_found_at_their_finest(
    keep: int, group: int, expected: tuple[Pattern, ...], dtype: torch.dtype
) -> None:
    found = detect(exactly_nm(256, 512, keep, group).to(dtype))
    assert tuple(p for p in found.patterns if p in expected) == expected
    ratio = [p.keep / p.group for p in found.patterns if isinstance(p, NM)]
    assert len(set(ratio)) == len(ratio)
    assert not any(isinstance(p, Block) for p in found.patterns)


def test_2_4_gives_2_4_alone() -> None:
    assert detect(exactly_nm(256, 512, 2, 4)).patterns == (NM(2, 4), Unstructured(), Dense())


def test_one_nonzero_too_many_is_no_2_4() -> None:
    w = exactly_nm(256, 512, 2, 4)
    w[200, 300:304] = torch.tensor([1.0, 1.0, 0.0, 1.0])
    found = detect(w)
    assert found.keeps == {2: 2, 4: 3, 8: 5, 16: 9, 32: 17}
    assert [p for p in found.patterns if isinstance(p, NM)] == [NM(17, 32), NM(9, 16), NM(5, 8), NM(3, 4)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_blocks_are_found_at_their_own_size(size: tuple[int, int], density: float) -> None:
    block = Block(*size)
    mask = keep_mask(block, 1024, 1024, density)
    mask[: size[0], : 2 * size[1]] = torch.tensor([True, False]).repeat_interleave(size[1])  # both kinds, side by side
    found = detect(nonzeros(1024, 1024) * mask)
    assert found.pattern == block
    others = [p for p in found.patterns if isinstance(p, Block) and p != block]
    assert all(p.rows * p.cols > block.rows * block.cols for p in others)
    assert not others or density == 0.1  # where larger blocks are still half full


def test_a_32x32_mask_is_block_32x32_and_not_16x16_also_where_it_overhangs() -> None:
    for n, k in ((512, 512), (500, 490), (33, 65)):
        mask = keep_mask(Block(32, 32), n, k, 0.5)
        mask[:32, :64] = torch.tensor([True, False]).repeat_interleave(32)
        found = detect(nonzeros(n, k) * mask)
        assert found.patterns[0] == Block(32, 32)
        assert Block(16, 16) not in found.patterns
        assert Block(32, 1) not in found.patterns


def test_a_few_zeros_inside_live_blocks_leave_a_block_pattern() -> None:
    w = nonzeros(512, 512) * keep_mask(Block(16, 16), 512, 512, 0.3) * (torch.rand(512, 512) < 0.95)
    found = detect(w)
    assert found.pattern == Block(16, 16)
    assert Unstructured() in found.patterns


def test_2_4_with_a_few_more_zeros_is_still_2_4() -> None:
    w = exactly_nm(256, 512, 2, 4) * (torch.rand(256, 512) < 0.95)
    assert detect(w).pattern == NM(2, 4)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02, 0.002])
def test_unstructured_zeros_are_never_called_blocks(density: float) -> None:
    found = detect(nonzeros(1024, 1024) * (torch.rand(1024, 1024) < density))
    assert found.pattern == Unstructured()
    assert not any(isinstance(p, Block) for p in found.patterns)


def test_removed_rows_and_columns_are_counted_and_found_as_thin_blocks() -> None:
    w = nonzeros(256, 256)
    w[torch.randperm(256)[:77]] = 0
    found = detect(w)
    assert (found.zero_rows, found.zero_cols, found.pattern) == (77, 0, Block(1, 32))
    found = detect(w.t())
    assert (found.zero_rows, found.zero_cols, found.pattern) == (0, 77, Block(32, 1))


def test_no_zeros_is_dense_and_one_zero_is_not() -> None:
    w = nonzeros(64, 64)
    assert detect(w).patterns == (Dense(),)
    w[5, 5] = -0.0
    found = detect(w)
    assert (found.nonzeros, found.pattern, found.patterns[-1]) == (64 * 64 - 1, Unstructured(), Dense())


def test_nan_infinity_and_subnormals_are_no_zeros() -> None:
    for dtype in DTYPES:
        w = torch.tensor([[torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).smallest_normal / 2]], dtype=dtype)
        assert detect(w).nonzeros == 4


def test_every_16_bit_value_but_two_is_no_zero() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        w = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(256, 256)
        assert detect(w).nonzeros == 2**16 - 2


def test_all_zeros_are_dead_blocks_of_the_largest_size_that_fits() -> None:
    found = detect(torch.zeros(200, 100))
    assert (found.pattern, found.density, found.zero_rows, found.zero_cols) == (Block(64, 64), 0.0, 200, 100)
    assert set(found.live_blocks.values()) == {0}
    assert detect(torch.zeros(1, 1)).patterns == (Unstructured(), Dense())


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_an_empty_weight_is_dense(shape: tuple[int, int]) -> None:
    found = detect(torch.ones(shape))
    assert (found.patterns, found.density) == ((Dense(),), 0.0)
    assert (found.zero_rows, found.zero_cols) == shape


def test_a_narrow_weight_without_zeros_is_not_called_nm() -> None:
    for k in range(1, 8):
        assert detect(nonzeros(5, k)).patterns == (Dense(),), k


def test_strided_weights_and_parameters_are_seen_as_they_are() -> None:
    w = exactly_nm(64, 128, 2, 4)
    assert detect(w.t().contiguous().t()) == detect(w)
    assert detect(torch.nn.Parameter(w)) == detect(w)
    assert NM(2, 4) not in detect(w.t()).patterns


@pytest.mark.parametrize(
    ("w", "match"),
    [
        (torch.ones(4), r"detect looks at a 2-D weight \[n, k\], found 1-D \(4,\)"),
        (torch.ones(2, 3, 4), r"found 3-D \(2, 3, 4\)"),
        (torch.ones(4, 4, dtype=torch.int8), "detect looks at weights of float32, float16, bfloat16, .*, found int8"),
        (torch.ones(4, 4, dtype=torch.bool), "detect looks at weights of .*, found bool"),
        (torch.ones(4, 4, dtype=torch.complex64), "detect looks at weights of .*, found complex64"),
        (torch.ones(4, 4, device="meta"), "can't read the weight: it is on the meta device, without values"),
        (torch.ones(4, 4).to_sparse(), "can't read the weight: it has the layout torch.sparse_coo"),
    ],
    ids=["1-D", "3-D", "int8", "bool", "complex", "meta", "sparse"],
)
def test_what_is_no_weight_is_refused(w: Tensor, match: str) -> None:
    with pytest.raises(PatternError, match=match):
        detect(w)
