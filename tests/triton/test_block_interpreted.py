"""The Triton kernels that train block-sparse layers, run by Triton's interpreter on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ajour.formats import BlockMatrix
from ajour.ops.block_linear import triton_kernel
from ajour.ops.block_linear.scheduled import PACKING, remembered_order
from ajour.ops.block_linear.triton_configs import configs, no_descriptors
from ajour.ops.block_sddmm import triton_kernel as sddmm
from ajour.terms.errors import KernelError
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry, parse_row_table
from pruned import bits, keep_mask, truth

pytestmark = [  # numpy under the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:triton.runtime.interpreter"),
]
BLOCKS = (Block(16, 16), Block(32, 32), Block(64, 64), Block(128, 128), Block(128, 16), Block(32, 64), Block(17, 48))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def drawn(pattern: Block, n: int, k: int, dtype: torch.dtype, density: float = 0.5, skew: bool = False) -> BlockMatrix:
    w = torch.where(keep_mask(pattern, n, k, density, skew), torch.randn(n, k), 0.0)
    return BlockMatrix.from_dense(w.to(dtype), pattern)


def entry_of(matrix: BlockMatrix, config: str = "") -> RowEntry:
    n, k = matrix.shape
    return parse_row_table(f"{n}x{k} {str(matrix.dtype)[6:]} {matrix.pattern} | * triton 0:6 {config}".rstrip()).at(1)


def product(x: Tensor, matrix: BlockMatrix, config: str, transposed: bool, scheduled: bool = True) -> Tensor:
    packed = PACKING.prepack(matrix, "") if scheduled else list(matrix.tensors().values())
    if transposed:
        return triton_kernel.run_t(x, packed, entry_of(matrix, config))
    return triton_kernel.run(x, packed, None, None, "none", entry_of(matrix, config))


@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_every_configuration_is_within_the_error_rule(pattern: Block, transposed: bool) -> None:
    matrix = drawn(pattern, 72, 136, torch.float32)
    w = matrix.to_dense().T.contiguous() if transposed else matrix.to_dense()
    for m, others in ((1, (2, 16)), (34, (17, 64)), (101, (65, 8192))):  # x, and rows that ask for these tiles
        x = torch.randn(m, w.shape[1])
        expected = truth(x, w, None, None, "none")
        problems = [Problem("block_linear", pattern, rows, 72, 136, "bfloat16", "cuda", (9, 0)) for rows in others]
        tried = dict.fromkeys(config for problem in problems for config in configs(problem))
        for config in list(tried)[m % 2 :: 2]:
            expected.check(product(x, matrix, config, transposed), f"{pattern} m={m} {config}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_the_transpose_is_within_the_error_rule(pattern: Block, dtype: torch.dtype) -> None:
    for m, n, k in ((3, 5, 33), (17, 100, 64), (33, 160, 144)):
        matrix = drawn(pattern, n, k, dtype)
        dy = torch.randn(2 * m, n).to(dtype)[::2]
        expected = truth(dy, matrix.to_dense().T.contiguous(), None, None, "none")
        described = no_descriptors(pattern, (n,), dy.element_size(), (9, 0)) is None
        for config in ("", "m16 n16 k64 w4 s2" + " tma" * described, "m32 n32 k16 w4 s2"):
            expected.check(product(dy, matrix, config, True), f"{pattern} {m}x{n}x{k} {config}")


@pytest.mark.parametrize("config", ["m16 n16 k64 w4 s2", "m16 n32 k32 w4 s2 tma"])
def test_the_order_of_block_rows_changes_no_bit(config: str) -> None:
    matrix = drawn(Block(32, 32), 256, 200, torch.float32, density=0.3, skew=True)
    for transposed in (False, True):
        x = torch.randn(21, 256 if transposed else 200)
        with_order, without = (product(x, matrix, config, transposed, scheduled) for scheduled in (True, False))
        assert torch.equal(bits(with_order), bits(without))
        assert torch.equal(bits(with_order), bits(product(x, matrix, config, transposed)))


def test_descriptors_take_x_wherever_it_lies() -> None:
    matrix = drawn(Block(32, 32), 64, 72, torch.float32)
    for x in (
        torch.randn(12, 72)[::2],
        torch.randn(72, 6).t(),
        torch.randn(1, 72).expand(6, -1),
        torch.randn(6, 73)[:, 1:],
    ):
        expected = truth(x, matrix.to_dense(), None, None, "none")
        expected.check(product(x, matrix, "m16 n32 k32 w4 s2 tma", False), str(x.stride()))


def sampled(dy: Tensor, x: Tensor, matrix: BlockMatrix, gradient: Tensor, accumulate: bool, config: str = "") -> Tensor:
    sddmm.run(gradient, dy, x, list(matrix.tensors().values())[1:], accumulate, entry_of(matrix, config))
    return BlockMatrix({**matrix.tensors(), "blocks": gradient}, matrix.pattern, matrix.shape).to_dense()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_sddmm_is_within_the_error_rule_fresh_and_added(pattern: Block, dtype: torch.dtype) -> None:
    for m, n, k in ((1, 33, 50), (300, 160, 144)):  # many tokens are shared out
        matrix = drawn(pattern, n, k, dtype)
        ones = BlockMatrix({**matrix.tensors(), "blocks": torch.ones_like(matrix.values)}, pattern, (n, k)).to_dense()
        dy, x = torch.randn(m, n).to(dtype), torch.randn(2 * m, k).to(dtype)[::2]
        for accumulate in (False, True):
            before = torch.randn(matrix.values.shape).to(dtype) * (matrix.values != 0)
            held = BlockMatrix({**matrix.tensors(), "blocks": before}, pattern, (n, k)).to_dense()
            expected = truth(dy.T.contiguous(), x.T.contiguous(), None, held if accumulate else None, "none")
            expected.y = expected.y * ones
            gradient = before.clone() if accumulate else torch.full_like(before, float("nan"))
            expected.check(sampled(dy, x, matrix, gradient, accumulate), f"{pattern} m={m} {accumulate}")
            BlockMatrix({**matrix.tensors(), "blocks": gradient}, pattern, (n, k)).validate()  # zeros beyond it


@pytest.mark.parametrize("pattern", [Block(16, 16), Block(64, 32), Block(48, 17)], ids=str)
def test_every_configuration_of_sddmm_is_within_the_error_rule(pattern: Block) -> None:
    matrix = drawn(pattern, 130, 200, torch.float32)
    ones = BlockMatrix({**matrix.tensors(), "blocks": torch.ones_like(matrix.values)}, pattern, (130, 200)).to_dense()
    dy, x = torch.randn(70, 130), torch.randn(70, 200)
    expected = truth(dy.T.contiguous(), x.T.contiguous(), None, None, "none")
    expected.y = expected.y * ones
    problem = Problem("block_sddmm", pattern, 512, 130, 200, "float32", "cuda", (9, 0), 0.5)
    for config in sddmm.configs(problem):
        gradient = torch.full_like(matrix.values, float("nan"))
        expected.check(sampled(dy, x, matrix, gradient, False, config), f"{pattern} {config}")


@pytest.mark.parametrize(
    ("pattern", "n", "k", "message"),
    [(Block(32, 48), 64, 96, "sides are powers of two"), (Block(32, 32), 64, 66, "rows of a multiple of 16 bytes")],
)
def test_descriptors_that_do_not_fit_are_refused(pattern: Block, n: int, k: int, message: str) -> None:
    matrix = drawn(pattern, n, k, torch.float32)
    with pytest.raises(KernelError, match=message):
        product(torch.randn(20, k), matrix, "m16 n32 k32 w4 s2 tma", False)
    for dtype in ("bfloat16", "float16"):
        problem = Problem("block_linear", pattern, 512, n, k, dtype, "cuda", (9, 0))
        assert not any("tma" in config for config in configs(problem))


def test_each_product_runs_its_own_configuration() -> None:
    matrix = drawn(Block(32, 64), 96, 128, torch.float32)
    x, dy = torch.randn(20, 128), torch.randn(20, 96)
    both = "m16 n32 k64 w4 s2 tma / m32 n64 k32 w4 s2 / t32 g1 w4 s2 p2"
    alone = product(x, matrix, "m16 n32 k64 w4 s2 tma", False), product(dy, matrix, "m32 n64 k32 w4 s2", True)
    assert torch.equal(bits(product(x, matrix, both, False)), bits(alone[0]))
    assert torch.equal(bits(product(dy, matrix, both, True)), bits(alone[1]))
    with pytest.raises(KernelError, match="is no Triton tile"):
        product(dy, matrix, "m16 n32 k64 w4 s2 / t32 g1 w4 s2 p2", True)


def test_the_order_of_block_rows_is_sorted_once_and_again_when_they_change() -> None:
    offsets = torch.tensor([0, 1, 4, 6], dtype=torch.int32)
    first = remembered_order(offsets)
    assert first.tolist() == [1, 2, 0]
    assert remembered_order(offsets) is first
    offsets.copy_(torch.tensor([0, 3, 4, 6], dtype=torch.int32))
    assert remembered_order(offsets).tolist() == [0, 2, 1]


def test_sddmm_adds_bfloat16_products_to_a_float_gradient() -> None:
    matrix = drawn(Block(32, 32), 64, 64, torch.bfloat16)
    dy, x = torch.randn(40, 64).bfloat16(), torch.randn(40, 64).bfloat16()
    gradient = torch.zeros(matrix.values.shape)
    sampled(dy, x, matrix, gradient, True)
    found = sampled(dy, x, matrix, gradient, True)
    exact = 2 * (dy.double().T @ x.double())
    assert (found - exact)[found != 0].abs().max() < 1e-5 * exact.abs().max()
