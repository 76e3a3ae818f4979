"""cuda_sm80 on a GPU: right for every row count, side and configuration, and the same bits every time."""

from __future__ import annotations

import pytest
import torch
from products import assert_only_stored_columns_spread, drawn, replayed_at_once, twice

from ajour.formats import NMMatrix
from ajour.ops import NM_LINEAR
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS
from pruned import bits, truth

SHAPES = ((64, 256), (1, 1), (65, 33), (1000, 1000), (4096, 512), (130, 5000))
ALL = ("n256 m128 s4", "n128 m256 s3", "n128 m128 s3", "n128 m64 s5", "n256 m128 s2 c1", "n128 m64 s4 c2")


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("m", [1, 33, 64, 65, 100, 128, 257, 1000, 4096])
def test_any_rows_and_sides_are_within_the_error_rule_and_repeat_themselves(m: int, config: str) -> None:
    for turn, (n, k) in enumerate(SHAPES):
        dtype, activation = (torch.bfloat16, torch.float16)[(turn + m) % 2], ACTIVATIONS[(turn + m) % len(ACTIVATIONS)]
        w, x = drawn(NM(2, 4), n, k, dtype), torch.randn(m, k).to(dtype)
        bias = torch.randn(n).to(dtype) if turn % 2 else None
        residual = torch.randn(m, n).to(dtype) if turn % 3 else None
        packed, table = prepare(NM_LINEAR, NMMatrix.from_dense(w, NM(2, 4)).to("cuda"), [(None, "cuda_sm80", config)])
        y = twice(NM_LINEAR, x, packed, table, bias, activation, residual)
        truth(x, w, bias, residual, activation).check(y, f"{table} m={m} {activation}")


@pytest.mark.parametrize("config", ["n128 m128 s3", "n128 m64 s4 c2"])
def test_small_products_are_within_the_error_rule(config: str) -> None:
    """For the sanitizers too: few blocks, whole and cut tiles, sides that end within one."""
    for n, k in ((65, 33), (136, 272)):
        w, x = drawn(NM(2, 4), n, k, torch.bfloat16), torch.randn(70, k).bfloat16()
        bias, residual = torch.randn(n).bfloat16(), torch.randn(70, n).bfloat16()
        packed, table = prepare(NM_LINEAR, NMMatrix.from_dense(w, NM(2, 4)).to("cuda"), [(None, "cuda_sm80", config)])
        y = NM_LINEAR.call(x.cuda(), packed, bias.cuda(), table, "silu", residual.cuda())
        truth(x, w, bias, residual, "silu").check(y.cpu(), f"{config} {n}x{k}")


def test_rows_of_x_may_stand_anywhere_and_inf_stays_in_its_column() -> None:
    matrix = NMMatrix.from_dense(drawn(NM(2, 4), 200, 520, torch.bfloat16), NM(2, 4))
    packed, table = prepare(NM_LINEAR, matrix.to("cuda"), [(None, "cuda_sm80", "n128 m64 s4")])
    held = torch.randn(200, 533).bfloat16()
    for x in (held[:, 3:523], held[::2, :520], held[:, 8:528]):
        y = NM_LINEAR.call(x.cuda(), packed, None, table, "none")
        truth(x, matrix.to_dense(), None, None, "none").check(y.cpu(), f"{x.stride()}")
    x = torch.randn(100, 520).bfloat16()
    x[7, 3], x[50, 100] = float("inf"), float("nan")
    assert_only_stored_columns_spread(NM_LINEAR.call(x.cuda(), packed, None, table, "none").cpu(), x, matrix)


def test_it_shares_the_slabs_of_the_decode_kernel_and_runs_in_graphs() -> None:
    matrix = NMMatrix.from_dense(drawn(NM(2, 4), 256, 512, torch.bfloat16), NM(2, 4)).to("cuda")
    config = NM_LINEAR.kernel("cuda_sm80").configs(problem_of(matrix, 128))[0]
    packed, table = prepare(NM_LINEAR, matrix, [(64, "cuda_decode", ""), (None, "cuda_sm80", config)])
    assert len(packed) == 1
    for m in (8, 128):
        x = torch.randn(m, 512, device="cuda").bfloat16()
        expected = NM_LINEAR.call(x, packed, None, table, "relu")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = NM_LINEAR.call(x, packed, None, table, "relu")
        graph.replay()
        assert torch.equal(bits(y), bits(expected))


def test_two_graphs_that_share_tiles_give_the_bits_of_eager_calls_when_replayed_at_once() -> None:
    matrix = NMMatrix.from_dense(drawn(NM(2, 4), 1000, 4096, torch.bfloat16), NM(2, 4)).to("cuda")
    packed, table = prepare(NM_LINEAR, matrix, [(None, "cuda_sm80", "n128 m64 s4 c2")])
    xs = [torch.randn(m, 4096, device="cuda").bfloat16() for m in (40, 100)]
    replayed_at_once(NM_LINEAR, xs, packed, table)
