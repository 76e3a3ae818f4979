"""block_sddmm: every kernel gives dy.T @ x at the live blocks and nothing else, fresh or added to a gradient."""

from __future__ import annotations

import pytest
import torch
from blocks import BLOCKS, DTYPES, at_the_end_of_a_page, dense_of, drawn, levels, live_places
from torch import Tensor

from ajour.formats import BlockMatrix
from ajour.ops import BLOCK_SDDMM
from ajour.ops.block_sddmm.native_kernel import KERNEL
from ajour.ops.functional import problem_of
from ajour.terms.errors import KernelError
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem
from pruned import bits, truth


def table_of(matrix: BlockMatrix, kernel: str = "cpu_blocks") -> str:
    n, k = matrix.shape
    return f"{n}x{k} {str(matrix.dtype)[6:]} {matrix.pattern} | * {kernel} 0:5"


def index_of(matrix: BlockMatrix) -> list[Tensor]:
    return list(matrix.tensors().values())[1:]


def check(matrix: BlockMatrix, blocks: Tensor, dy: Tensor, x: Tensor, before: Tensor | None, what: str) -> None:
    """The error rule at live places, zeros beyond the weight."""
    held = None if before is None else dense_of(before, matrix)
    expected = truth(dy.T.contiguous(), x.T.contiguous(), None, held, "none")
    places = live_places(matrix)
    expected.y = expected.y * places
    expected.check(dense_of(blocks, matrix).to(dy.dtype), what)
    BlockMatrix({**matrix.tensors(), "blocks": blocks}, matrix.pattern, matrix.shape).validate()


@pytest.mark.parametrize("kernel", BLOCK_SDDMM.kernels)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_every_kernel_is_within_the_error_rule_on_every_level(pattern: Block, dtype: torch.dtype, kernel: str) -> None:
    matrix = drawn(pattern, 97, 131, dtype)
    if BLOCK_SDDMM.kernel(kernel).why_not(problem_of(matrix, 9)) is not None:
        return
    for m in (1, 6, 101):
        dy, x = torch.randn(2 * m, 100).to(dtype)[::2, 3:], torch.randn(m, 131).to(dtype)
        before = torch.randn(matrix.values.shape).to(dtype) * (matrix.values != 0)
        for level in levels():
            blocks = BLOCK_SDDMM.call(dy, x, index_of(matrix), table_of(matrix, kernel))
            assert blocks.dtype == dtype
            check(matrix, blocks, dy, x, None, f"{kernel} {level} {pattern} m={m}")
            added = before.clone()
            BLOCK_SDDMM.add(added, dy, x, index_of(matrix), table_of(matrix, kernel))
            check(matrix, added, dy, x, before, f"{kernel} {level} {pattern} m={m} added")
            if kernel == "reference":
                break


@pytest.mark.parametrize("kernel", BLOCK_SDDMM.kernels)
def test_a_float_gradient_of_bfloat16_keeps_what_bfloat16_would_round_away(kernel: str) -> None:
    matrix = drawn(Block(16, 16), 64, 64, torch.bfloat16)
    if BLOCK_SDDMM.kernel(kernel).why_not(problem_of(matrix, 9)) is not None:
        return
    dy, x = (torch.randn(33, 64).bfloat16() for _ in range(2))
    total = torch.zeros(matrix.values.shape)
    for _ in range(3):
        BLOCK_SDDMM.add(total, dy, x, index_of(matrix), table_of(matrix, kernel))
    exact = 3 * (dy.double().T @ x.double()) * live_places(matrix)
    assert (dense_of(total, matrix) - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_many_tokens_are_summed_in_chunks_without_losing_any(dtype: torch.dtype) -> None:
    matrix = drawn(Block(32, 32), 896, 896, dtype, density=0.05)
    m = 2000  # beyond what is packed at once
    dy, x = (torch.randn(m, 896).to(dtype) for _ in range(2))
    blocks = BLOCK_SDDMM.call(dy, x, index_of(matrix), table_of(matrix))
    check(matrix, blocks, dy, x, None, "many tokens")
    before = torch.randn(matrix.values.shape).to(dtype)
    BLOCK_SDDMM.add(blocks.copy_(before), dy, x, index_of(matrix), table_of(matrix))
    check(matrix, blocks, dy, x, before, "many tokens added")


@pytest.mark.parametrize("pattern", [Block(32, 32), Block(4, 1), Block(5, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_threads_share_uneven_rows_and_change_no_bit(pattern: Block, dtype: torch.dtype) -> None:
    matrix = drawn(pattern, 320, 300, dtype, density=0.3, skew=True)
    dy, x = torch.randn(300, 320).to(dtype), torch.randn(300, 300).to(dtype)
    before = torch.get_num_threads()
    try:
        for level in levels():
            found = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(BLOCK_SDDMM.call(dy, x, index_of(matrix), table_of(matrix)))
            assert all(torch.equal(bits(found[0]), bits(each)) for each in found[1:]), level
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_inf_and_nan_reach_the_blocks_of_their_row_or_column_and_no_padding(dtype: torch.dtype) -> None:
    for pattern in (Block(16, 16), Block(32, 32), Block(32, 1), Block(5, 7)):
        matrix = drawn(pattern, 37, 45, dtype, density=0.6)
        dy, x = torch.randn(9, 37).to(dtype), torch.randn(9, 45).to(dtype)
        dy[3, 36], x[5, 44] = float("nan"), float("inf")
        expected = dy.double().T @ x.double()
        for level in levels():
            blocks = BLOCK_SDDMM.call(dy, x, index_of(matrix), table_of(matrix))
            BlockMatrix({**matrix.tensors(), "blocks": blocks}, pattern, matrix.shape).validate()  # zeros beyond it
            found, live = dense_of(blocks, matrix).double(), live_places(matrix) == 1
            assert torch.equal(found.isfinite(), expected.isfinite() | ~live), f"{level} {pattern}"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(16, 16), Block(4, 1), Block(5, 7)], ids=str)
def test_nothing_is_touched_behind_dy_x_or_the_gradient(pattern: Block, dtype: torch.dtype) -> None:
    for n, k in ((64, 64), (37, 131)):
        matrix = drawn(pattern, n, k, dtype, density=1.0)
        for m in (1, 13, 100):
            dy, x = torch.randn(m, n).to(dtype), torch.randn(m, k).to(dtype)
            for level in levels():
                gradient = at_the_end_of_a_page(torch.zeros_like(matrix.values))
                lent = at_the_end_of_a_page(dy), at_the_end_of_a_page(x)
                BLOCK_SDDMM.add(gradient, *lent, index_of(matrix), table_of(matrix))
                expected = BLOCK_SDDMM.call(dy, x, index_of(matrix), table_of(matrix))
                assert torch.equal(gradient, expected), f"{level} m={m}"


def test_no_rows_no_blocks_and_no_columns_give_zeros() -> None:
    matrix = drawn(Block(4, 4), 8, 8, torch.float32)
    for kernel in ("cpu_blocks", "reference"):
        blocks = BLOCK_SDDMM.call(
            torch.randn(2, 0, 8), torch.randn(2, 0, 8), index_of(matrix), table_of(matrix, kernel)
        )
        assert torch.equal(blocks, torch.zeros(matrix.values.shape))
        kept = torch.ones_like(blocks)
        BLOCK_SDDMM.add(kept, torch.randn(0, 8), torch.randn(0, 8), index_of(matrix), table_of(matrix, kernel))
        assert torch.equal(kept, torch.ones_like(blocks))
        empty = drawn(Block(4, 4), 8, 8, torch.float32, density=0.0)
        found = BLOCK_SDDMM.call(torch.randn(3, 8), torch.randn(3, 8), index_of(empty), table_of(empty, kernel))
        assert found.shape == (0, 4, 4)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("kernel", ["cpu_blocks", "reference"])
def test_opcheck_passes(kernel: str) -> None:
    matrix = drawn(Block(8, 4), 20, 33, torch.float32)
    dy, x = torch.randn(2, 3, 20), torch.randn(2, 3, 33)
    torch.library.opcheck(torch.ops.ajour.block_sddmm.default, (dy, x, index_of(matrix), table_of(matrix, kernel)))
    gradient = torch.randn(matrix.values.shape)
    torch.library.opcheck(BLOCK_SDDMM.add, (gradient, dy, x, index_of(matrix), table_of(matrix, kernel)))


@pytest.mark.unpoisoned
def test_compile_takes_both_forms_in_one_graph() -> None:
    matrix = drawn(Block(8, 4), 20, 33, torch.float32)
    index, table = index_of(matrix), table_of(matrix)

    def step(gradient: Tensor, dy: Tensor, x: Tensor) -> Tensor:
        BLOCK_SDDMM.add(gradient, dy, x, index, table)
        return BLOCK_SDDMM.call(dy, x, index, table)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in (5, 2):
        dy, x = torch.randn(m, 20), torch.randn(m, 33)
        first, second = torch.zeros(matrix.values.shape), torch.zeros(matrix.values.shape)
        assert torch.equal(compiled(first, dy, x), step(second, dy, x))
        assert torch.equal(first, second)


REFUSALS = {
    "rows": ({"dy": torch.randn(4, 20)}, r"dy has shape \(4, 20\) and x \(5, 33\), the weight 20x33 needs"),
    "columns": (
        {"x": torch.randn(5, 32)},
        r"and x \(5, 32\), the weight 20x33 needs \[\.\.\., 20\] and \[\.\.\., 33\]",
    ),
    "dtype": ({"x": torch.randn(5, 33).half()}, "x is torch.float16, the weight is float32"),
    "index": ({"index": []}, "expected the 5 int32 indices of a BlockMatrix, found 0 tensors"),
    "kernel": ({"kernels": "20x33 float32 block 8x4 | * warp 0:5"}, "block_sddmm has no kernel 'warp'"),
    "pattern": ({"kernels": "20x33 float32 2:4 | * reference 0:5"}, "expected a block pattern, found 2:4"),
    "gradient": ({"gradient": torch.randn(2, 2)}, r"expected a contiguous gradient \(\d+, 8, 4\) .* found \(2, 2\)"),
}


@pytest.mark.parametrize("change", REFUSALS)
def test_a_wrong_call_is_refused_with_a_sentence(change: str) -> None:
    matrix = drawn(Block(8, 4), 20, 33, torch.float32)
    call = {
        "gradient": torch.zeros(matrix.values.shape),
        "dy": torch.randn(5, 20),
        "x": torch.randn(5, 33),
        "index": index_of(matrix),
        "kernels": table_of(matrix),
    }
    wrong, sentence = REFUSALS[change]
    with pytest.raises(KernelError, match=sentence):
        torch.ops.ajour.block_sddmm_(**(call | wrong))


def test_the_kernel_says_what_it_does_not_take() -> None:
    problem = Problem("block_sddmm", Block(4, 4), 1, 8, 8, "float64", "cpu")
    assert KERNEL.why_not(problem) == "it takes float32, bfloat16, float16, this layer is float64"
    problem = Problem("block_sddmm", Block(4, 4), 1, 8, 8, "float32", "cuda")
    assert KERNEL.why_not(problem) == "it runs on the CPU, this layer is on cuda"
