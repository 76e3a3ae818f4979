"""Positions of e4m3 values as `wgmma.sp` takes them: where CUTLASS looks for them, and back bit for bit."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ajour.ops.scaled_nm_linear.sm90_kernel import pack_positions, unpack_positions

PADDED = 512  # rows of the packed form are a multiple of it
SIDES = ((8, 32), (512, 128), (512, 256), (1000, 544), (64, 992))


def positions(n: int, k: int) -> torch.Tensor:
    """Random legal codes, two in a byte."""
    legal = torch.tensor([4, 8, 9, 12, 13, 14], dtype=torch.uint8)
    codes = legal[torch.randint(6, (n, k // 4))]
    return codes[:, ::2] | codes[:, 1::2] << 4


@pytest.mark.parametrize(("n", "k"), SIDES)
def test_unpacking_is_the_inverse_and_padding_is_legal(n: int, k: int) -> None:
    held = positions(n, k)
    packed = pack_positions(held, n)
    assert packed.shape == (-(-k // 256) * 2, -(-n // PADDED) * PADDED, 16)
    assert torch.equal(unpack_positions(packed, n, k), held)
    assert (packed[:, n:] == 0x44).all()
    assert (packed.transpose(0, 1).flatten(1)[:, k // 8 :] == 0x44).all()


@pytest.fixture(scope="module")
def scaled_layouts(compiled: Callable[[str], Path]) -> Path:
    """The program that reads our packed form by CUTLASS's layout."""
    return compiled("scaled_layouts.cpp")


@pytest.mark.parametrize(("n", "k"), SIDES)
def test_cutlass_finds_every_code_where_we_put_it(scaled_layouts: Path, tmp_path: Path, n: int, k: int) -> None:
    held = positions(n, k)
    packed = pack_positions(held, n)
    (tmp_path / "packed").write_bytes(packed.numpy().tobytes())
    command = [scaled_layouts, str(packed.shape[1]), str(-(-k // 256) * 256), tmp_path / "packed", tmp_path / "codes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    codes = torch.frombuffer(bytearray((tmp_path / "codes").read_bytes()), dtype=torch.uint8)
    codes = codes.view(packed.shape[1], -1)
    expected = torch.full_like(codes, 4)  # the code of padding
    expected[:n, : k // 4] = torch.stack([held & 15, held >> 4], -1).flatten(1)
    assert torch.equal(codes, expected)
