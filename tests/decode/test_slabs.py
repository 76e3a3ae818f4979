"""Slabs hold a weight bit for bit, and nothing but it; stripes cover the work once, in equal pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ajour._native import native
from ajour.formats import BitmapMatrix, NMMatrix
from ajour.ops.bitmap_linear import decode_kernel as bitmap_kernel
from ajour.ops.bitmap_linear import gap_kernel
from ajour.ops.nm_linear import decode_kernel as nm_kernel
from ajour.terms.errors import KernelError
from ajour.terms.pattern import NM, Unstructured
from pruned import bits, keep_mask

PATTERNS = [NM(keep, group) for group in (4, 8, 16, 32) for keep in range(1, group)]
LIMITS = native.DeviceLimits(132, 232448, 233472)


def odd_values(n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """NaN with a payload, Inf, subnormals and ordinary numbers, never zero."""
    info = torch.finfo(dtype)
    odd = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), info.smallest_normal / 4, info.max, 1.5], dtype=dtype
    )
    bits(odd)[0] += 1
    return odd[torch.randint(len(odd), (n, k))]


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    pattern=st.sampled_from([*PATTERNS, NM(2, 4), Unstructured()]),
    n=st.integers(1, 200),
    k=st.integers(1, 400),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_unpack_is_the_bit_exact_inverse_of_prepack(
    pattern: NM | Unstructured, n: int, k: int, density: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    w = torch.where(keep_mask(pattern, n, k, density, skew=seed % 2 == 1), odd_values(n, k, dtype), 0.0)
    matrix: NMMatrix | BitmapMatrix
    if isinstance(pattern, NM):
        matrix, kernel = NMMatrix.from_dense(w, pattern), nm_kernel.KERNEL
    else:
        matrix, kernel = BitmapMatrix.from_dense(w), bitmap_kernel.KERNEL
    back = kernel.unpack(kernel.prepack(matrix, ""), pattern, (n, k))
    for name, tensor in matrix.tensors().items():
        assert torch.equal(bits(back.tensors()[name]), bits(tensor)), name
    back.validate()


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(1, 200),
    k=st.one_of(st.integers(1, 600), st.integers(8000, 20000)),
    density=st.sampled_from([0.0, 0.001, 0.05, 0.25, 1.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    skew=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gap_rows_give_every_value_back(
    n: int, k: int, density: float, dtype: torch.dtype, skew: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    w = torch.where(keep_mask(Unstructured(), n, k, density, skew), odd_values(n, k, dtype), 0.0)
    matrix = BitmapMatrix.from_dense(w)
    matrix.tensors()["values"][::3] = 0.0  # a stored zero is a value: training may leave some
    packed = gap_kernel.KERNEL.prepack(matrix, "")
    back = gap_kernel.KERNEL.unpack(packed, Unstructured(), (n, k))
    for name, tensor in matrix.tensors().items():
        assert torch.equal(bits(back.tensors()[name]), bits(tensor)), name
    back.validate()
    order = packed[2][packed[2] >= 0]
    assert torch.equal(order.sort().values, torch.arange(n, dtype=torch.int32)), "every row stands once"


@pytest.mark.parametrize("gap", [1, 254, 255, 256, 509, 510, 511, 764, 765, 5000])
def test_a_gap_of_any_length_can_be_written(gap: int) -> None:
    w = torch.zeros(1, 8192).bfloat16()
    w[0, ::gap] = 1.5
    matrix = BitmapMatrix.from_dense(w)
    back = gap_kernel.KERNEL.unpack(gap_kernel.KERNEL.prepack(matrix, ""), Unstructured(), (1, 8192))
    assert torch.equal(back.to_dense(), w)


@pytest.mark.parametrize(("density", "most"), [(0.1, 1.0), (0.05, 0.75)])
def test_gap_rows_take_fewer_bytes_than_a_bitmap_of_few_values(density: float, most: float) -> None:
    w = torch.where(torch.rand(4096, 4096) < density, 1.5, 0.0).bfloat16()
    matrix = BitmapMatrix.from_dense(w)
    gaps, bitmap = (sum(t.nbytes for t in k.KERNEL.prepack(matrix, "")) for k in (gap_kernel, bitmap_kernel))
    assert gaps < most * bitmap


def test_every_slot_of_x_fits_the_smallest_card() -> None:
    limits = native.DeviceLimits(80, 99 << 10, 100 << 10)
    for n, k in ((1, 1), (4096, 4096), (8192, 28672), (40000, 8200)):
        for m in (1, 2, 3, 4):
            shape = native.GapShape(m, native.GapRows(n, k), limits, 3)
            assert shape.tokens >= m
            assert shape.shared_bytes <= 99 << 10
            assert shape.blocks >= 1
    with pytest.raises(KernelError, match="gap rows serve 1 to 4 rows of x, found 5"):
        native.GapShape(5, native.GapRows(64, 64), limits, 3)


def test_2_4_takes_nine_bits_a_weight() -> None:
    layout = native.NMSlabs(4096, 4096, 2, 4)
    assert layout.bytes - layout.slab_bytes == 4096 * 4096 * 9 // 8


def test_a_bitmap_takes_a_bit_for_each_place_and_its_values() -> None:
    w = torch.where(torch.rand(512, 1024) < 0.3, torch.randn(512, 1024), 0.0).bfloat16()
    slabs, index, room = bitmap_kernel.KERNEL.prepack(BitmapMatrix.from_dense(w), "")
    least = 512 * 1024 // 8 + 2 * int((w != 0).sum())
    assert least <= slabs.nbytes <= least + 16 * 8 * 16 + 512
    assert room.numel() == 16 * int(index.diff().max())


@pytest.mark.parametrize("pattern", [(2, 6), (1, 3), (4, 4), (0, 4), (2, 64)])
def test_other_patterns_are_refused(pattern: tuple[int, int]) -> None:
    with pytest.raises(KernelError, match="a group of 4, 8, 16 or 32, found"):
        native.NMSlabs(8, 8, *pattern)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    m=st.integers(1, 64),
    n=st.integers(1, 40000),
    k=st.integers(1, 40000),
    blocks=st.integers(1, 4),
    stages=st.integers(2, 8),
    processors=st.integers(1, 200),
)
def test_every_shape_fits_the_device(m: int, n: int, k: int, blocks: int, stages: int, processors: int) -> None:
    limits = native.DeviceLimits(processors, 232448, 233472)
    shape = native.DecodeShape(m, n, k, 64, 4608, limits, blocks, stages)
    assert shape.tokens >= m
    assert 2 <= shape.stages <= stages
    assert shape.shared_bytes <= 232448
    assert 1 <= shape.stripes <= processors * blocks


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(tiles=st.integers(1, 60), steps=st.integers(1, 60), wanted=st.integers(1, 300))
def test_stripes_cover_every_step_once_and_leave_their_parts_in_places_of_their_own(
    tiles: int, steps: int, wanted: int
) -> None:
    stripes = native.Stripes(tiles, steps, wanted)
    begins = [stripes.begin(i) for i in range(stripes.count + 1)]
    lengths = [b - a for a, b in pairwise(begins)]
    assert (begins[0], begins[-1]) == (0, tiles * steps)
    assert max(lengths) - min(lengths) <= 1 <= min(lengths)
    places = set()
    for tile in range(tiles):
        first, last = stripes.first_holder(tile), stripes.last_holder(tile)
        assert begins[first] <= tile * steps < begins[first + 1]
        assert begins[last] <= tile * steps + steps - 1 < begins[last + 1]
        assert stripes.shared or first == last
        places |= {stripes.place(i, tile) for i in range(first, last + 1)} if first != last else set()
        if first != last:
            assert all(0 <= stripes.place(i, tile) < 2 * stripes.count for i in range(first, last + 1))
    parts = [(i, t) for t in range(tiles) for i in range(stripes.first_holder(t), stripes.last_holder(t) + 1)]
    shared = [(i, t) for i, t in parts if stripes.first_holder(t) != stripes.last_holder(t)]
    assert len(places) == len(shared), "two parts share a place"


def test_too_many_rows_and_too_little_memory_are_sentences() -> None:
    with pytest.raises(KernelError, match="decoding takes 1 to 64 rows, found 65"):
        native.DecodeShape(65, 64, 64, 64, 4608, LIMITS, 1, 2)
    with pytest.raises(KernelError, match="bytes of shared memory for a block of 8 rows, this device has 10000"):
        native.DecodeShape(8, 64, 64, 64, 4608, native.DeviceLimits(1, 10000, 20000), 1, 2)
