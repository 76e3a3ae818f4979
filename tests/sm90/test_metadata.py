"""The packed form of wgmma.sp: every code where the instruction looks for it, and bit for bit back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ajour._native import native
from ajour.formats import NMMatrix
from ajour.ops import NM_LINEAR
from ajour.ops.nm_linear import sm90_kernel
from ajour.ops.prepare import prepare, restore
from ajour.terms.pattern import NM
from pruned import bits, keep_mask

TWO_FOUR = NM(2, 4)
PADDED = 512  # rows are padded to multiples of these


def two_of_four(n: int, k: int, density: float = 0.5, dtype: torch.dtype = torch.bfloat16) -> NMMatrix:
    w = torch.where(keep_mask(TWO_FOUR, n, k, density, skew=density < 0.5), torch.randn(n, k), 0.0)
    return NMMatrix.from_dense(w.to(dtype), TWO_FOUR)


def codes(metadata: Tensor, n: int, k: int) -> Tensor:
    """The codes of a weight's groups, [padded n, padded k / 4], by PTX's figures of the sparse wgmma's registers.

    For 32 columns lane 4 r + h of warp w gives one word: nibble j is the code of columns 16 h + 4 j.. of row 16 w + r,
    nibble 4 + j that of row 16 w + r + 8. Its words of a tile's 128 columns are 16 bytes at 256 w + 128 h + 16 r.
    """
    tiles = metadata.view(-(-k // 128), -(-n // PADDED) * (PADDED // 64), 4, 2, 8, 4, 4)  # .., w, h, r, step, byte
    nibbles = torch.stack((tiles & 15, tiles >> 4), -1).flatten(-2)  # the eight nibbles of a word
    halves = nibbles.unflatten(-1, (2, 4))  # row r or r + 8, group j
    column, row, w, h, r, step, upper, j = range(8)
    return halves.permute(row, w, upper, r, column, step, h, j).reshape(tiles.shape[1] * 64, tiles.shape[0] * 32).long()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    n=st.sampled_from([8, 64, 104, 512, 520]),
    k=st.sampled_from([16, 48, 128, 144, 400]),
    density=st.sampled_from([0.1, 0.5]),
    seed=st.integers(0, 1000),
)
def test_a_product_from_the_packed_form_is_that_of_the_weight(n: int, k: int, density: float, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = two_of_four(n, k, density)
    values, metadata = sm90_kernel.KERNEL.prepack(matrix, "")
    found = codes(metadata, n, k)[:n, : k // 4]
    column = torch.stack((found & 3, found >> 2), -1) + 4 * torch.arange(k // 4)[:, None]
    x = torch.randn(5, k).bfloat16().double()
    y = (x[:, column.flatten(1)] * values.double()).sum(-1)  # [5, n]: each kept value by the x that its code selects
    torch.testing.assert_close(y, x @ matrix.to_dense().double().T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(8, 16), (104, 400), (513 * 8, 144)])
def test_every_code_is_legal_and_padding_selects_zeros(n: int, k: int) -> None:
    """PTX leaves the effect of any other code undefined, whether or not its products are used."""
    metadata = sm90_kernel.KERNEL.prepack(two_of_four(n, k), "")[1]
    found = codes(metadata, n, k)
    assert set(found.unique().tolist()) <= {4, 8, 9, 12, 13, 14}
    assert (found[n:] == 4).all()
    assert (found[:, k // 4 :] == 4).all()
    assert metadata.numel() == -(-n // PADDED) * PADDED * -(-k // 128) * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(8, 16), (64, 128), (104, 400), (1000, 2064)])
def test_unpack_is_the_bit_exact_inverse_of_prepack(n: int, k: int, dtype: torch.dtype) -> None:
    matrix = two_of_four(n, k, 0.3, dtype)
    bits(matrix.values)[0, 0] = bits(torch.tensor(float("nan"), dtype=dtype)) + 1
    packed = sm90_kernel.KERNEL.prepack(matrix, "")
    back = sm90_kernel.KERNEL.unpack(packed, TWO_FOUR, (n, k))
    back.validate()
    for name, tensor in matrix.tensors().items():
        assert torch.equal(bits(back.tensors()[name]), bits(tensor)), name


def test_packed_is_nine_bits_a_weight_and_no_second_copy_of_the_values() -> None:
    matrix = two_of_four(1024, 4096)
    values, metadata = sm90_kernel.KERNEL.prepack(matrix, "")
    assert values.data_ptr() == matrix.values.data_ptr()
    assert values.nbytes + metadata.nbytes == 1024 * 4096 * 9 // 8


def test_all_configurations_of_a_layer_share_one_packed_form() -> None:
    matrix = two_of_four(64, 128)
    choices = [(512, "cuda_sm90", "256x128x128_2x1 stream w1"), (None, "cuda_sm90", "256x128x128_2x1 tiles w4")]
    packed, table = prepare(NM_LINEAR, matrix, choices)
    assert len(packed) == 2
    assert torch.equal(bits(restore(NM_LINEAR, packed, table).to_dense()), bits(matrix.to_dense()))


def test_values_that_tma_cannot_address_are_moved() -> None:
    matrix = two_of_four(16, 32)
    room = torch.empty(matrix.values.numel() + 1, dtype=torch.bfloat16)
    odd = room[1:].view_as(matrix.values).copy_(matrix.values)
    moved = NMMatrix({**matrix.tensors(), "values": odd}, TWO_FOUR, (16, 32))
    values, _ = sm90_kernel.KERNEL.prepack(moved, "")
    assert values.data_ptr() % 16 == 0
    assert torch.equal(values, odd)


@pytest.fixture(scope="module")
def cutlass_layouts(compiled: Callable[[str], Path]) -> Path:
    """The program that reads our packed form by CUTLASS's layouts."""
    return compiled("cutlass_layouts.cpp")


@pytest.mark.parametrize(("n", "k"), [(8, 16), (512, 128), (1000, 528)])
def test_cutlass_finds_every_code_where_we_put_it(cutlass_layouts: Path, n: int, k: int) -> None:
    done = subprocess.run([cutlass_layouts, str(n), str(k)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    padded = -(-n // PADDED) * PADDED * -(-k // 128) * 32
    assert int(done.stdout) == padded + 64 * 32, "codes as loaded, and as the lanes of one warpgroup take them"


def test_layouts_know_their_size() -> None:
    assert native.Sm90Metadata(4096, 4096).bytes == 4096 * 4096 // 8
    assert native.Sm90Metadata(8, 16).bytes == PADDED * 16
