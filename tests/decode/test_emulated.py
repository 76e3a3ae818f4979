"""The decode kernels' device code is right on emulated sm_80 and sm_90, whatever order its threads run in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from emulated import Launch, build, decode
from torch import Tensor

from ajour.formats import NMMatrix, SparseMatrix
from ajour.terms.pattern import NM, Pattern, Unstructured
from ajour.terms.problem import ACTIVATIONS
from emulation import ROOT
from pruned import bits, keep_mask, matrix_of, stored_places, truth

PATTERNS: tuple[Pattern, ...] = (
    *(NM(*p) for p in ((2, 4), (1, 4), (3, 4), (1, 8), (2, 8), (4, 8), (2, 16), (7, 16), (1, 32), (9, 32))),
    Unstructured(),
)
SHAPES = ((64, 256), (100, 200), (65, 33), (1, 1), (130, 600), (300, 96))
ROWS = (1, 3, 8, 13, 16, 27, 40, 64)
DTYPES = (torch.bfloat16, torch.float16)


def weight(pattern: Pattern, n: int, k: int, dtype: torch.dtype, density: float = 0.4, skew: bool = False) -> Tensor:
    return torch.where(keep_mask(pattern, n, k, density, skew), torch.randn(n, k), 0.0).to(dtype)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_row_count_and_ragged_shape_is_within_the_error_rule(
    pattern: Pattern, emulator: Path, tmp_path: Path
) -> None:
    for turn, m in enumerate(ROWS):
        n, k = SHAPES[(turn + PATTERNS.index(pattern)) % len(SHAPES)]
        dtype, activation = DTYPES[turn % 2], ACTIVATIONS[turn % len(ACTIVATIONS)]
        w = weight(pattern, n, k, dtype, (0.1, 0.5, 0.9)[turn % 3], skew=turn % 4 == 3)
        x = torch.randn(m, k).to(dtype)
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 == 0 else None
        launch = Launch(
            bulk=turn % 2 == 0, processors=1 + turn % 5, stages=2 + turn % 4, seed=turn, blocks=1 + turn % 2
        )
        y, said = decode(emulator, tmp_path, matrix_of(w, pattern), x, launch, bias, residual, activation)
        truth(x, w, bias, residual, activation).check(y, f"{pattern} {n}x{k} m={m} {dtype} {launch} {said}")


def few_rows(kernel: str) -> Pattern:
    """The pattern of a kernel for 1 to 4 rows."""
    return NM(2, 4) if kernel == "lanes" else Unstructured()


@pytest.mark.parametrize("kernel", ["lanes", "gaps"])
def test_kernels_for_few_rows_are_within_the_error_rule(kernel: str, emulator: Path, tmp_path: Path) -> None:
    pattern = few_rows(kernel)
    for turn, (n, k) in enumerate((*SHAPES, (40, 9000), (9, 2100), (33, 1024))):
        m, dtype, activation = 1 + turn % 4, DTYPES[turn % 2], ACTIVATIONS[turn % len(ACTIVATIONS)]
        w = weight(pattern, n, k, dtype, (0.1, 0.002, 0.9)[turn % 3], skew=turn % 4 == 3)
        x = torch.randn(m, k + 3).to(dtype)[:, turn % 3 : turn % 3 + k]
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 == 0 else None
        launch = Launch(turn % 2 == 0, processors=1 + turn % 5, seed=turn, x_offset=turn % 3)
        y, said = decode(emulator, tmp_path, matrix_of(w, pattern), x, launch, bias, residual, activation, kernel)
        truth(x, w, bias, residual, activation).check(y, f"{kernel} {n}x{k} m={m} {dtype} {launch} {said}")


@pytest.mark.parametrize("kernel", ["lanes", "gaps"])
def test_kernels_for_few_rows_give_the_same_bits_in_any_order(kernel: str, emulator: Path, tmp_path: Path) -> None:
    pattern = few_rows(kernel)
    matrix, x = matrix_of(weight(pattern, 60, 4100, torch.bfloat16, 0.05), pattern), torch.randn(3, 4100).bfloat16()
    launches = [Launch(processors=7, seed=seed, launches=1 + seed % 2) for seed in range(3)]
    found = [decode(emulator, tmp_path, matrix, x, launch, kernel=kernel) for launch in launches]
    assert "7 stripes, 1 shared" in found[0][1] or "5 spans" in found[0][1]
    assert all(torch.equal(bits(y), bits(found[0][0])) for y, _ in found)


@pytest.mark.parametrize("kernel", ["lanes", "gaps"])
def test_kernels_for_few_rows_give_the_weight_back(kernel: str, emulator: Path, tmp_path: Path) -> None:
    w = weight(few_rows(kernel), 65, 24, torch.float16)
    for first in range(0, 24, 3):
        x = torch.eye(24, dtype=torch.float16)[first : first + 3]
        y, _ = decode(emulator, tmp_path, matrix_of(w, few_rows(kernel)), x, Launch(seed=first), kernel=kernel)
        assert torch.equal(y, w[:, first : first + 3].t())


@pytest.mark.parametrize("bulk", [True, False], ids=["sm_90", "sm_80"])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(2, 8), Unstructured()], ids=str)
def test_shared_tiles_are_summed_in_one_order_whoever_arrives_last(
    pattern: Pattern, bulk: bool, emulator: Path, tmp_path: Path
) -> None:
    """Threads, blocks and copies come in another order for every seed, and a second launch finds the counters of the
    first; the bits stay.
    """
    w, x = weight(pattern, 130, 1300, torch.bfloat16), torch.randn(5, 1300).bfloat16()
    found = [
        decode(
            emulator, tmp_path, matrix_of(w, pattern), x, Launch(bulk, processors=7, seed=seed, launches=1 + seed % 2)
        )
        for seed in range(4)
    ]
    assert "7 stripes, 1 shared" in found[0][1]
    for y, _ in found:
        truth(x, w, None, None, "none").check(y, str(pattern))
        assert torch.equal(bits(y), bits(found[0][0]))


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), Unstructured()], ids=str)
def test_rows_of_x_may_stand_anywhere(pattern: Pattern, emulator: Path, tmp_path: Path) -> None:
    w = weight(pattern, 70, 90, torch.float16)
    held = torch.randn(20, 131).half()
    for x, offset in ((held[:, 3:93], 3), (held[::2, :90], 0), (held[:, 8:98], 8), (held[:1, :90], 1)):
        y, _ = decode(emulator, tmp_path, matrix_of(w, pattern), x, Launch(x_offset=offset))
        truth(x, w, None, None, "none").check(y, f"{pattern} offset {offset} stride {x.stride(0)}")


@pytest.mark.parametrize(
    ("pattern", "kernel"),
    [
        *((pattern, "") for pattern in (NM(2, 4), NM(1, 4), NM(3, 8), NM(2, 16), NM(5, 32), Unstructured())),
        *((few_rows(kernel), kernel) for kernel in ("lanes", "gaps")),
    ],
    ids=str,
)
def test_inf_and_nan_in_x_reach_only_the_outputs_that_store_their_column(
    pattern: Pattern, kernel: str, emulator: Path, tmp_path: Path
) -> None:
    for m, n, k in ((1, 33, 100), (5, 64, 31), (19, 40, 260), (3, 12, 9000)):
        if kernel and m > 4:
            continue
        matrix = matrix_of(weight(pattern, n, k, torch.bfloat16, 0.4 if k < 999 else 0.002), pattern)
        x = torch.randn(m, k).bfloat16()
        for row in range(0, m, 2):  # the rows between stay finite
            x[row, row * 7 % k] = (float("nan"), float("inf"), -float("inf"))[row // 2 % 3]
        x[0, k - 1] = float("inf")
        y = decode(emulator, tmp_path, matrix, x, Launch(processors=3), kernel=kernel)[0].double()
        expected = torch.where(stored_places(matrix), x.double()[:, None] * matrix.to_dense().double(), 0.0).sum(-1)
        finite = expected.isfinite()
        assert torch.equal(y.isnan(), expected.isnan()), "NaN where it does not belong, or lost"
        assert torch.equal(y[y.isinf()], expected[expected.isinf()])
        assert torch.equal(y.isfinite(), finite)
        bound = truth(x.nan_to_num(0, 0, 0), matrix.to_dense(), None, None, "none").bound
        assert float((y - expected)[finite].abs().sum()) == 0 or float((y - expected)[finite].abs().amax()) <= bound


def every_code(dtype: torch.dtype) -> tuple[SparseMatrix, Tensor]:
    """Rows that repeat each of the six codes of 2:4, in rising and falling order, and every pair of them."""
    codes = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
    order = torch.cat(
        [torch.arange(6), torch.arange(5, -1, -1), torch.cartesian_prod(*[torch.arange(6)] * 2).flatten()]
    )
    n, groups = 72, 50
    w = torch.zeros(n, groups, 4)
    for row in range(n):
        chosen = codes[order.roll(row)[:groups] if row % 2 else torch.full((groups,), row // 2 % 6)]
        w[row].scatter_(1, chosen, torch.randn(groups, 2))
    dense = w.flatten(1).to(dtype)
    return NMMatrix.from_dense(dense, NM(2, 4)), dense


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_six_codes_of_2_4_reach_their_column(dtype: torch.dtype, emulator: Path, tmp_path: Path) -> None:
    """x is a unit vector for each column in turn, so y gives the weight back, bit for bit."""
    matrix, w = every_code(dtype)
    k = w.shape[1]
    for first in range(0, k, 64):
        x = torch.eye(k, dtype=dtype)[first : first + 64]
        y, _ = decode(emulator, tmp_path, matrix, x, Launch(bulk=first % 128 == 0))
        assert torch.equal(bits(y), bits(w[:, first : first + 64].t().contiguous()))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_unit_vectors_give_the_weight_back(pattern: Pattern, emulator: Path, tmp_path: Path) -> None:
    w = weight(pattern, 65, 150, torch.float16)
    for first in range(0, 150, 64):
        x = torch.eye(150, dtype=torch.float16)[first : first + 64]
        y, _ = decode(emulator, tmp_path, matrix_of(w, pattern), x, Launch(seed=first))
        assert torch.equal(y, w[:, first : first + 64].t())


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("csrc/cuda/stripe_linear.cuh", "    __syncthreads();  // everyone is done", "    // everyone"),
        ("csrc/cuda/stripe_linear.cuh", "ptx::barrier_wait(barriers_ + slot_, parity_)", "(void)0"),
        ("csrc/cuda/nm_decode.cuh", "mma_sparse<Kind, 1>", "mma_sparse<Kind, 0>"),
        ("csrc/cuda/stripe_linear.cuh", "tile_, others) == others", "tile_, others + 1) == others"),
    ],
    ids=["no block barrier", "no wait for copies", "wrong sparsity selector", "counters that are not left at zero"],
)
def test_the_emulator_sees_planted_bugs(file: str, right: str, wrong: str, tmp_path: Path) -> None:
    copy = tmp_path / "csrc"
    subprocess.run(["cp", "-r", ROOT / "csrc", copy], check=True)
    broken = copy / Path(file).relative_to("csrc")
    text = broken.read_text()
    assert right in text
    broken.write_text(text.replace(right, wrong))
    program = build(tmp_path, copy, ("-O0", "-DONLY_2_4"))
    w, x = weight(NM(2, 4), 130, 900, torch.bfloat16), torch.randn(8, 900).bfloat16()
    expected, wrongs = truth(x, w, None, None, "none"), 0
    for seed in range(4):
        try:
            y, _ = decode(program, tmp_path, matrix_of(w, NM(2, 4)), x, Launch(seed=seed, stages=2))
            expected.check(y, "planted")
        except AssertionError:
            wrongs += 1
    assert wrongs, "a planted bug went unseen"
