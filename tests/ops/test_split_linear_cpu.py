"""split_linear's CPU kernel on every instruction set of this machine, and its sum: one rounding for both parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ajour._native import native
from ajour.formats import SplitMatrix
from ajour.ops import SPLIT_LINEAR
from ajour.ops.prepare import prepare, restore
from ajour.terms.problem import ACTIVATIONS, Problem
from pruned import Split, bits, keep_mask, truth

NAMES = ("portable", "avx2", "avx512", "avx512bf16")
LEVELS = NAMES[: NAMES.index(native.best_cpu_isa()) + 1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    native.set_cpu_isa(request.param)
    yield request.param
    native.set_cpu_isa(native.best_cpu_isa())


def weight(n: int, k: int, density: float, dtype: torch.dtype, skew: bool = False) -> Tensor:
    return torch.where(keep_mask(Split(), n, k, density, skew), torch.randn(n, k), 0.0).to(dtype)


def packed_of(w: Tensor) -> tuple[list[Tensor], str]:
    return prepare(SPLIT_LINEAR, SplitMatrix.from_dense(w), [(None, "cpu", "")])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_every_level_is_right_for_every_tile_of_tokens(level: str, dtype: torch.dtype) -> None:
    for turn, (n, k, density) in enumerate(
        ((130, 300, 0.6), (17, 64, 0.5), (40, 517, 0.3), (5, 33, 1.0), (33, 700, 0.02))
    ):
        w = weight(n, k, density, dtype, skew=turn == 2)
        packed, table = packed_of(w)
        for m in (1, 2, 3, 6, 16, 17, 33, 70):
            x, bias, residual = (torch.randn(*shape).to(dtype) for shape in ((m, k), (n,), (m, n)))
            activation = ACTIVATIONS[(turn + m) % len(ACTIVATIONS)]
            y = SPLIT_LINEAR.call(x, packed, bias, table, activation, residual)
            truth(x, w, bias, residual, activation).check(y, f"{level} {n}x{k} m={m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_both_parts_are_summed_before_anything_is_rounded(level: str, dtype: torch.dtype) -> None:
    w = torch.zeros(20, 8, dtype=dtype)
    w[:, 0], w[:, 1], w[:, 2] = 1024.0, 1.0, -1024.0  # 1025 has no bfloat16, and its rest takes the 1024 away again
    packed, table = packed_of(w)
    for m in (1, 5, 40):
        y = SPLIT_LINEAR.call(torch.ones(m, 8, dtype=dtype), packed, None, table, "none")
        assert torch.equal(y, torch.ones(m, 20, dtype=dtype))


@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    w, x = weight(300, 500, 0.5, torch.bfloat16), torch.randn(33, 500).bfloat16()
    packed, table = packed_of(w)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y = SPLIT_LINEAR.call(x, packed, None, table, "none")
        torch.set_num_threads(3 - threads)
        assert torch.equal(bits(y), bits(SPLIT_LINEAR.call(x, packed, None, table, "none")))
    finally:
        torch.set_num_threads(before)


def test_weights_trained_to_zero_keep_their_places() -> None:
    matrix = SplitMatrix.from_dense(weight(20, 40, 0.6, torch.float32))
    tensors = {**matrix.tensors(), "values": torch.zeros_like(matrix.values)}
    zeros = SplitMatrix(tensors, matrix.pattern, matrix.shape)
    packed, table = prepare(SPLIT_LINEAR, zeros, [(None, "cpu", "")])
    back = restore(SPLIT_LINEAR, packed, table).tensors()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_what_it_does_not_take_is_a_sentence() -> None:
    problem = Problem("split_linear", Split(), 8, 64, 64, "float64", "cpu")
    assert "takes float32, bfloat16, float16, this layer is float64" in str(SPLIT_LINEAR.kernel("cpu").why_not(problem))
    problem = Problem("split_linear", Split(), 8, 64, 64, "float32", "cuda")
    assert "runs on the CPU, this layer is on cuda" in str(SPLIT_LINEAR.kernel("cpu").why_not(problem))
