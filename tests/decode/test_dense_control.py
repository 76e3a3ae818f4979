"""The dense control on a GPU: the decode kernels' skeleton with nothing to decode, emulated here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.control import slabs
from emulated import Launch, decode

from pruned import bits, truth

ROWS = (1, 3, 8, 13, 16, 27, 40, 64)
SHAPES = ((64, 256), (100, 200), (65, 33), (1, 1), (130, 600), (300, 96))
DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("bulk", [True, False], ids=["sm_90", "sm_80"])
def test_every_row_count_and_ragged_shape_is_within_the_error_rule(bulk: bool, emulator: Path, tmp_path: Path) -> None:
    for turn, m in enumerate(ROWS):
        n, k = SHAPES[turn % len(SHAPES)]
        dtype = DTYPES[turn % 2]
        w, x = torch.randn(n, k).to(dtype), torch.randn(m, k + 3).to(dtype)[:, turn % 3 : turn % 3 + k]
        launch = Launch(bulk, processors=1 + turn % 5, stages=2 + turn % 3, seed=turn, x_offset=turn % 3)
        y, said = decode(emulator, tmp_path, w, x, launch)
        truth(x, w, None, None, "none").check(y, f"{n}x{k} m={m} {dtype} {launch} {said}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unit_vectors_give_the_weight_back(dtype: torch.dtype, emulator: Path, tmp_path: Path) -> None:
    w = torch.randn(65, 150).to(dtype)
    for first in range(0, 150, 64):
        x = torch.eye(150, dtype=dtype)[first : first + 64]
        y, _ = decode(emulator, tmp_path, w, x, Launch(seed=first))
        assert torch.equal(bits(y), bits(w[:, first : first + 64].t().contiguous()))


def test_shared_tiles_are_summed_in_one_order_launch_after_launch(emulator: Path, tmp_path: Path) -> None:
    w, x = torch.randn(130, 1300).bfloat16(), torch.randn(5, 1300).bfloat16()
    found = [decode(emulator, tmp_path, w, x, Launch(processors=7, seed=seed, launches=3)) for seed in range(3)]
    assert "7 stripes, 1 shared" in found[0][1]
    assert all(torch.equal(bits(y), bits(found[0][0])) for y, _ in found)


def test_inf_meets_zeros_as_in_any_dense_product(emulator: Path, tmp_path: Path) -> None:
    w, x = torch.randn(20, 90).bfloat16(), torch.randn(3, 90).bfloat16()
    w[3, 7], x[1, 7] = 0.0, float("inf")
    y, _ = decode(emulator, tmp_path, w, x, Launch())
    assert torch.equal(y.isnan(), (x.float() @ w.float().T).isnan())


def test_each_weight_stands_once_where_a_lane_reads_it() -> None:
    """After PTX's table of operand A of m16n8k16, whose elements 2 r and 2 r + 1 are register r of a lane."""
    n, k = 70, 130
    w = torch.arange(1, n * k + 1, dtype=torch.int32).view(n, k)
    packed, across = slabs(w), -(-k // 64)
    row, column = torch.arange(n)[:, None], torch.arange(k)[None]
    lane = row % 8 * 4 + column % 8 // 2
    element = column % 16 // 8 * 4 + row % 16 // 8 * 2 + column % 2
    fragment = column % 64 // 16 * 4 + row % 64 // 16
    slab = row // 64 * across + column // 64
    assert torch.equal(packed[slab * 4096 + (fragment * 32 + lane) * 8 + element], w)
    assert int((packed != 0).sum()) == n * k, "all else is zero"
    assert packed.numel() == (2 * across + 1) * 4096, "a slab of zeros ends them"
