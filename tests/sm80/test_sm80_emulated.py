"""cuda_sm80's device code is right on an emulated block, whatever order its threads run in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from sm80_emulated import Launch, build, multiply
from torch import Tensor

from ajour.formats import NMMatrix
from ajour.ops.nm_linear.sm80_kernel import aligned
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS
from emulation import ROOT
from pruned import bits, keep_mask, stored_places, truth

PATTERN = NM(2, 4)
CONFIGS = ("n256 m128 s3", "n128 m256 s2", "n128 m128 s4", "n128 m64 s5", "n128 m128 s3 c1", "n128 m64 s2 c3")
SHAPES = ((300, 200), (64, 264), (257, 65), (128, 64), (1, 1), (200, 96), (130, 31))
ROWS = (130, 33, 64, 200, 1, 65, 97)
DTYPES = (torch.bfloat16, torch.float16)


def weight(n: int, k: int, dtype: torch.dtype = torch.bfloat16, skew: bool = False) -> Tensor:
    return torch.where(keep_mask(PATTERN, n, k, skew=skew), torch.randn(n, k), 0.0).to(dtype)


@pytest.mark.parametrize("config", CONFIGS)
def test_any_rows_and_ragged_sides_are_within_the_error_rule(config: str, sm80: Path, tmp_path: Path) -> None:
    for turn in range(5):
        place = turn + CONFIGS.index(config)
        (n, k), m = SHAPES[place % len(SHAPES)], ROWS[place * 3 % len(ROWS)]
        dtype, activation = DTYPES[turn % 2], ACTIVATIONS[place % len(ACTIVATIONS)]
        w, x = weight(n, k, dtype, skew=turn == 3), torch.randn(m, k).to(dtype)
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 == 0 else None
        launch = Launch(config, 1 + place % 4, seed=turn, y_offset=turn % 2)
        y, said = multiply(sm80, tmp_path, NMMatrix.from_dense(w, PATTERN), x, launch, bias, residual, activation)
        truth(x, w, bias, residual, activation).check(y, f"{n}x{k} m={m} {dtype} {launch} {said}")


def test_shared_tiles_are_summed_in_one_order_whoever_arrives_last(sm80: Path, tmp_path: Path) -> None:
    """Threads, blocks and copies come in another order for every seed, and a second launch finds the counters of the
    first; the bits stay.
    """
    w, x = weight(130, 640), torch.randn(70, 640).bfloat16()
    matrix = NMMatrix.from_dense(w, PATTERN)
    launches = [Launch("n128 m64 s3 c1", 7, seed=seed, launches=1 + seed % 2) for seed in range(4)]
    found = [multiply(sm80, tmp_path, matrix, x, launch) for launch in launches]
    assert "4 tiles, 7 stripes, 1 shared, 3 stages" in found[0][1]
    for y, _ in found:
        truth(x, w, None, None, "none").check(y, "shared tiles")
        assert torch.equal(bits(y), bits(found[0][0]))


@pytest.mark.parametrize("config", ["n128 m64 s3", "n256 m128 s2 c1"])
def test_inf_and_nan_in_x_reach_only_the_outputs_that_store_their_column(
    config: str, sm80: Path, tmp_path: Path
) -> None:
    m, n, k = 67, 140, 100
    matrix = NMMatrix.from_dense(weight(n, k), PATTERN)
    x = torch.randn(m, k).bfloat16()
    for row in range(0, m, 2):  # the rows between stay finite
        x[row, row * 7 % k] = (float("nan"), float("inf"), -float("inf"))[row // 2 % 3]
    x[0, k - 1] = float("inf")
    y = multiply(sm80, tmp_path, matrix, x, Launch(config))[0].double()
    expected = torch.where(stored_places(matrix), x.double()[:, None] * matrix.to_dense().double(), 0.0).sum(-1)
    finite = expected.isfinite()
    assert torch.equal(y.isnan(), expected.isnan()), "NaN where it does not belong, or lost"
    assert torch.equal(y[y.isinf()], expected[expected.isinf()])
    bound = truth(x.nan_to_num(0, 0, 0), matrix.to_dense(), None, None, "none").bound
    assert float((y - expected)[finite].abs().max()) <= bound


def every_code(dtype: torch.dtype) -> Tensor:
    """Rows that repeat each of the six codes of 2:4, and every pair of them."""
    codes = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    order = torch.cat(
        [torch.arange(6), torch.arange(5, -1, -1), torch.cartesian_prod(*[torch.arange(6)] * 2).flatten()]
    )
    n, groups = 136, 34
    w = torch.zeros(n, groups, 4)
    for row in range(n):
        chosen = codes[order.roll(row)[:groups] if row % 2 else torch.full((groups,), row // 2 % 6)]
        w[row].scatter_(1, chosen, torch.randn(groups, 2))
    return w.flatten(1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_six_codes_reach_their_column(dtype: torch.dtype, sm80: Path, tmp_path: Path) -> None:
    """x is a unit vector for each column in turn, so y gives the weight back, bit for bit."""
    w = every_code(dtype)
    x = torch.eye(w.shape[1], dtype=dtype)
    y, _ = multiply(sm80, tmp_path, NMMatrix.from_dense(w, PATTERN), x, Launch("n256 m128 s3"))
    assert torch.equal(bits(y), bits(w.t().contiguous()))


def test_rows_of_x_may_stand_anywhere(sm80: Path, tmp_path: Path) -> None:
    w, held = weight(70, 90, torch.float16), torch.randn(80, 144).half()
    matrix = NMMatrix.from_dense(w, PATTERN)
    for x in (held[:, 3:93], held[::2, :90], held[:, 8:98], held[:, :1].expand(-1, 90), held.t()[:140, :80][:, :0]):
        if x.shape[1]:
            y, _ = multiply(sm80, tmp_path, matrix, x, Launch())
            truth(x, w, None, None, "none").check(y, f"stride {x.stride()}")
    assert aligned(held[:, 8:98]).data_ptr() == held[:, 8:98].data_ptr(), "copied without need"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    __syncthreads();  // the slot has landed", "    // the slot has landed"),
        ("    ptx::copies_wait(stages - 2);", "    ptx::copies_wait(stages - 1);"),
        ("mma_sparse<Kind, 1>", "mma_sparse<Kind, 0>"),
        ("    __syncthreads();  // everyone is done with the stage", "    // everyone is done with the stage"),
        ("tile, others) == others", "tile, others + 1) == others"),
        (
            "      __syncwarp();\n#pragma unroll 1\n      for (int i = 0; i < 2",
            "#pragma unroll 1\n      for (int i = 0; i < 2",
        ),
    ],
    ids=[
        "no block barrier",
        "waits for one group less",
        "wrong sparsity selector",
        "room too early",
        "counters that are not left at zero",
        "no warp barrier",
    ],
)
def test_the_emulator_sees_planted_bugs(right: str, wrong: str, tmp_path: Path) -> None:
    copy = tmp_path / "csrc"
    subprocess.run(["cp", "-r", ROOT / "csrc", copy], check=True)
    broken = copy / "cuda" / "nm_sm80.cuh"
    text = broken.read_text()
    assert text.count(right) == 1 or "Kind, 1" in right
    broken.write_text(text.replace(right, wrong))
    program = build(tmp_path, copy, ("-O0", "-DONLY_SMALL"))
    w, x = weight(130, 300), torch.randn(40, 300).bfloat16()
    matrix, expected, wrongs = NMMatrix.from_dense(w, PATTERN), truth(x, w, None, None, "none"), 0
    for seed in range(4):  # whole tiles and shared ones
        launch = Launch("n128 m64 s2 c1", 3, seed=seed) if seed % 2 else Launch("n128 m64 s2", seed=seed)
        try:
            expected.check(multiply(program, tmp_path, matrix, x, launch)[0], "planted")
        except AssertionError:
            wrongs += 1
    assert wrongs, "a planted bug went unseen"
