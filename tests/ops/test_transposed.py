"""block_linear_t: every kernel's product with the transposed weight, against float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from blocks import BLOCKS, DTYPES, at_the_end_of_a_page, drawn, levels, live_places
from torch import Tensor

from ajour.formats import BlockMatrix
from ajour.ops import BLOCK_LINEAR
from ajour.ops.block_linear.op import TRANSPOSED
from ajour.ops.functional import problem_of
from ajour.ops.prepare import prepare
from ajour.terms.errors import KernelError
from ajour.terms.pattern import Block
from pruned import bits, truth


def packed_for(matrix: BlockMatrix, kernel: str) -> tuple[list[Tensor], str]:
    return prepare(BLOCK_LINEAR, matrix, [(None, kernel, "")])


def taken(matrix: BlockMatrix, kernel: str) -> bool:
    return BLOCK_LINEAR.kernel(kernel).why_not(problem_of(matrix, 9)) is None


@pytest.mark.parametrize("kernel", [name for name in BLOCK_LINEAR.kernels if name != "onednn"])  # as aten
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_every_kernel_is_within_the_error_rule_on_every_level(pattern: Block, dtype: torch.dtype, kernel: str) -> None:
    for n, k in ((97, 131), (64, 192), (5, 3)):
        matrix = drawn(pattern, n, k, dtype)
        if not taken(matrix, kernel):
            return
        packed, table = packed_for(matrix, kernel)
        for m in (1, 13, 97):
            dy = torch.randn(2 * m, n + 5).to(dtype)[::2, 3 : 3 + n]
            expected = truth(dy, matrix.to_dense().T.contiguous(), None, None, "none")
            for level in levels():
                y = TRANSPOSED(dy, packed, table)
                expected.check(y, f"{level} {table} m={m}")
                if not kernel.startswith("cpu"):
                    break


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(16, 16), Block(4, 1)], ids=str)
def test_the_canonical_kernel_takes_every_number_of_rows_on_every_level(pattern: Block, dtype: torch.dtype) -> None:
    matrix = drawn(pattern, 70, 100, dtype)
    packed, table = packed_for(matrix, "cpu_blocks")
    w = matrix.to_dense()
    for m in (*range(1, 20), 24, 36, 47, 49, 96, 131):
        x, dy = torch.randn(m, 100).to(dtype), torch.randn(m, 70).to(dtype)
        forward, backward = truth(x, w, None, None, "none"), truth(dy, w.T.contiguous(), None, None, "none")
        for level in levels():
            forward.check(BLOCK_LINEAR.call(x, packed, None, table, "none"), f"{level} m={m}")
            backward.check(TRANSPOSED(dy, packed, table), f"{level} m={m} transposed")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(16, 16), Block(4, 1), Block(5, 7)], ids=str)
def test_threads_share_uneven_rows_and_change_no_bit(pattern: Block, dtype: torch.dtype) -> None:
    matrix = drawn(pattern, 200, 300, dtype, density=0.3, skew=True)
    packed, table = packed_for(matrix, "cpu_blocks")
    before = torch.get_num_threads()
    try:
        for m in (1, 60, 192):
            x, dy = torch.randn(m, 300).to(dtype), torch.randn(m, 200).to(dtype)
            for level in levels():
                forward, backward = [], []
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    forward.append(BLOCK_LINEAR.call(x, packed, None, table, "gelu"))
                    backward.append(TRANSPOSED(dy, packed, table))
                for ys in (forward, backward):
                    assert all(torch.equal(bits(ys[0]), bits(y)) for y in ys[1:]), f"{level} m={m}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", ["cpu_blocks", "cpu"])
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(5, 7), Block(32, 1)], ids=str)
def test_a_dead_block_contributes_nothing_even_where_dy_is_not_finite(pattern: Block, kernel: str) -> None:
    matrix = drawn(pattern, 70, 131, torch.float32)
    packed, table = packed_for(matrix, kernel)
    untouched = live_places(matrix)[69] == 0
    for m in (1, 20, 100):
        dy = torch.randn(m, 70)
        dy[:, 69] = float("inf")
        dx = TRANSPOSED(dy, packed, table)
        assert dx[:, untouched].isfinite().all()
        assert not dx[:, ~untouched].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(16, 16), Block(4, 1), Block(5, 7)], ids=str)
def test_nothing_is_read_behind_x_dy_or_the_blocks(pattern: Block, dtype: torch.dtype) -> None:
    for n, k in ((64, 64), (37, 131)):
        matrix = drawn(pattern, n, k, dtype, density=1.0)
        packed, table = packed_for(matrix, "cpu_blocks")
        lent = [at_the_end_of_a_page(packed[0]), *packed[1:]]
        for m in (1, 13, 100):
            x, dy = torch.randn(m, k).to(dtype), torch.randn(m, n).to(dtype)
            for level in levels():
                y = BLOCK_LINEAR.call(at_the_end_of_a_page(x), lent, None, table, "none")
                assert torch.equal(bits(y), bits(BLOCK_LINEAR.call(x, packed, None, table, "none"))), level
                dx = TRANSPOSED(at_the_end_of_a_page(dy), lent, table)
                assert torch.equal(bits(dx), bits(TRANSPOSED(dy, packed, table))), level


@pytest.mark.unpoisoned
def test_opcheck_passes() -> None:
    matrix = drawn(Block(8, 4), 20, 33, torch.float32)
    for kernel in BLOCK_LINEAR.kernels:
        if taken(matrix, kernel):
            packed, table = packed_for(matrix, kernel)
            torch.library.opcheck(torch.ops.ajour.block_linear_t.default, (torch.randn(2, 3, 20), packed, table))
            torch.library.opcheck(torch.ops.ajour.block_linear_t.default, (torch.randn(0, 20), packed, table))


def test_any_leading_shape_and_no_elements_give_the_shape_of_dx() -> None:
    matrix = drawn(Block(8, 4), 20, 33, torch.float32)
    packed, table = packed_for(matrix, "cpu_blocks")
    for shape in ((), (0,), (4,), (2, 0), (2, 1, 2)):
        assert TRANSPOSED(torch.randn(*shape, 20), packed, table).shape == (*shape, 33)
    for n, k in ((0, 5), (5, 0)):
        empty = BlockMatrix.from_dense(torch.randn(n, k), Block(8, 4))
        packed, table = packed_for(empty, "cpu_blocks")
        assert torch.equal(TRANSPOSED(torch.randn(3, n), packed, table), torch.zeros(3, k))


def test_a_wrong_call_is_refused_with_a_sentence() -> None:
    matrix = drawn(Block(8, 4), 20, 33, torch.float32)
    packed, table = packed_for(matrix, "cpu_blocks")
    with pytest.raises(KernelError, match=r"dy has shape \(4, 33\), the weight 20x33 needs \[\.\.\., 20\]"):
        TRANSPOSED(torch.randn(4, 33), packed, table)
    with pytest.raises(KernelError, match="dy is float16, the weight is float32; convert one of them"):
        TRANSPOSED(torch.randn(4, 20).half(), packed, table)
    with pytest.raises(KernelError, match="reads 6 packed tensors, found 5"):
        TRANSPOSED(torch.randn(4, 20), packed[:5], table)
    with pytest.raises(KernelError, match=r"blocks are \(\d+, 4, 8\), the row table says block 8x4"):
        TRANSPOSED(torch.randn(4, 20), [packed[0].mT, *packed[1:]], table)
