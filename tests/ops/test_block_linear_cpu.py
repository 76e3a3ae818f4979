"""block_linear's CPU kernel on every instruction set that this processor has."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ajour._native import native
from ajour.formats import BlockMatrix
from ajour.ops import BLOCK_LINEAR
from ajour.ops.block_linear.native_kernel import KERNEL
from ajour.ops.prepare import prepare, restore
from ajour.terms.pattern import Block
from ajour.terms.problem import ACTIVATIONS, Problem
from pruned import bits, keep_mask, truth

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
PRESENT = LEVELS[: LEVELS.index(native.best_cpu_isa()) + 1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# every number of rows in a panel, whole and padded; one unit a block and, for an odd number of columns, one a column
BLOCKS = (
    *(Block(32, 32), Block(16, 16), Block(8, 8), Block(4, 4), Block(64, 64), Block(256, 2)),
    *(Block(32, 1), Block(16, 1), Block(8, 1), Block(4, 1), Block(2, 1), Block(1, 2), Block(1, 256)),
    *(Block(5, 7), Block(33, 3), Block(12, 4), Block(31, 32), Block(3, 5)),
)

SOME_BLOCKS = (Block(32, 32), Block(16, 16), Block(32, 1), Block(4, 1), Block(1, 2), Block(5, 7), Block(31, 32))


@pytest.fixture(autouse=True)
def settings_of_before() -> Iterator[None]:
    """Gives back the instruction set and torch's number of threads."""
    isa, threads = native.cpu_isa(), torch.get_num_threads()
    yield
    native.set_cpu_isa(isa)
    torch.set_num_threads(threads)


def levels() -> Iterator[str]:
    """Each instruction set of this processor in turn, in use."""
    for level in PRESENT:
        native.set_cpu_isa(level)
        yield level


def draw(pattern: Block, n: int, k: int, dtype: torch.dtype, density: float = 0.4, skew: bool = False) -> Tensor:
    return torch.where(keep_mask(pattern, n, k, density, skew), torch.randn(n, k), 0.0).to(dtype)


def packed_of(w: Tensor, pattern: Block) -> tuple[list[Tensor], str]:
    return prepare(BLOCK_LINEAR, BlockMatrix.from_dense(w, pattern), [(None, "cpu", "")])


def ids(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("pattern", BLOCKS, ids=str)
def test_every_block_size_is_within_the_error_rule_on_every_level(pattern: Block, dtype: torch.dtype) -> None:
    for turn, (n, k) in enumerate(((64, 64), (97, 131), (5, 3))):
        w = draw(pattern, n, k, dtype)
        packed, table = packed_of(w, pattern)
        for m in (1, 5, 13, 97):
            x = torch.randn(2 * m, k + 5).to(dtype)[::2, 3 : 3 + k]
            bias = torch.randn(n).to(dtype) if m % 2 else None
            residual = torch.randn(m, n).to(dtype) if (m + turn) % 3 == 0 else None
            activation = ACTIVATIONS[(m + turn) % len(ACTIVATIONS)]
            expected = truth(x, w, bias, residual, activation)
            for level in levels():
                y = BLOCK_LINEAR.call(x, packed, bias, table, activation, residual)
                expected.check(y, f"{level} {table} m={m} {activation}")


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(16, 16), Block(4, 1)], ids=str)
def test_every_number_of_rows_is_within_the_error_rule(pattern: Block, dtype: torch.dtype) -> None:
    w = draw(pattern, 70, 100, dtype)
    packed, table = packed_of(w, pattern)
    for m in (*range(1, 37), 47, 48, 49, 95, 96, 131):
        x = torch.randn(m, 100).to(dtype)
        expected = truth(x, w, None, None, "none")
        for level in levels():
            expected.check(BLOCK_LINEAR.call(x, packed, None, table, "none"), f"{level} m={m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("pattern", [Block(32, 32), Block(16, 16), Block(4, 1), Block(5, 7)], ids=str)
def test_threads_share_uneven_rows_and_change_no_bit(pattern: Block, dtype: torch.dtype) -> None:
    w = draw(pattern, 200, 300, dtype, density=0.3, skew=True)
    w[: 2 * pattern.rows] = torch.randn(2 * pattern.rows, 300).to(dtype)  # the first rows hold most of the work
    packed, table = packed_of(w, pattern)
    for m in (1, 8, 60, 130, 192):
        x, bias = torch.randn(m, 300).to(dtype), torch.randn(200).to(dtype)
        expected = truth(x, w, bias, None, "gelu")
        for level in levels():
            ys = []
            for count in (1, 2, 3, 2):
                torch.set_num_threads(count)
                ys.append(BLOCK_LINEAR.call(x, packed, bias, table, "gelu"))
            expected.check(ys[0], f"{level} m={m}")
            assert all(torch.equal(bits(ys[0]), bits(y)) for y in ys[1:]), f"{level} m={m}"


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("pattern", SOME_BLOCKS, ids=str)
def test_a_dead_block_contributes_nothing_even_where_x_is_not_finite(pattern: Block, dtype: torch.dtype) -> None:
    n, k = 70, 131
    w = draw(pattern, n, k, dtype)
    matrix = BlockMatrix.from_dense(w, pattern)
    packed, table = prepare(BLOCK_LINEAR, matrix, [(None, "cpu", "")])
    live = torch.zeros(-(-n // pattern.rows), -(-k // pattern.cols), dtype=torch.bool)
    live[matrix.tensors()["rows"].long(), matrix.tensors()["columns"].long()] = True
    for m in (1, 5, 20, 100):
        x = torch.randn(m, k).to(dtype)
        for level in levels():
            y = BLOCK_LINEAR.call(x, packed, None, table, "none")
            for column, poison in ((0, "inf"), (k // 2, "nan"), (k - 1, "-inf")):
                poisoned = x.clone()
                poisoned[:, column] = float(poison)
                touched = live[:, column // pattern.cols].repeat_interleave(pattern.rows)[:n]
                got = BLOCK_LINEAR.call(poisoned, packed, None, table, "none")
                assert torch.equal(bits(got[:, ~touched]), bits(y[:, ~touched])), f"{level} m={m} column {column}"
                assert not got[:, touched].isfinite().any(), f"{level} m={m} column {column}"


def at_the_end_of_a_page(t: Tensor) -> tuple[Tensor, mmap.mmap]:
    """A copy of t, contiguous, whose last byte is followed by a page that must not be touched."""
    size = t.numel() * t.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=pages - size).view(t.shape)
    return copy.copy_(t), memory


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="protects a page, which needs a Unix")
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("pattern", SOME_BLOCKS, ids=str)
def test_nothing_is_read_behind_x_bias_or_residual(pattern: Block, dtype: torch.dtype) -> None:
    for n, k in ((64, 64), (37, 131)):
        packed, table = packed_of(draw(pattern, n, k, dtype, density=1.0), pattern)
        for m in (1, 3, 8, 13, 100):
            tensors = [torch.randn(m, k).to(dtype), torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)]
            lent = [at_the_end_of_a_page(t) for t in tensors]
            for level in levels():
                y = BLOCK_LINEAR.call(lent[0][0], packed, lent[1][0], table, "relu", lent[2][0])
                expected = BLOCK_LINEAR.call(tensors[0], packed, tensors[1], table, "relu", tensors[2])
                assert torch.equal(bits(y), bits(expected)), f"{level} m={m}"


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    n=st.integers(1, 90),
    k=st.integers(1, 90),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from((0.0, 0.3, 1.0)),
    seed=st.integers(0, 2**31),
)
def test_unpack_gives_every_block_back_bit_for_bit(
    rows: int, cols: int, n: int, k: int, dtype: torch.dtype, density: float, seed: int
) -> None:
    pattern = Block(rows, cols) if rows * cols > 1 else Block(1, 2)
    torch.manual_seed(seed)
    words = torch.randint(-(2**15), 2**15, (n, k), dtype=torch.int16)  # NaN, infinities and subnormals among them
    w = words.view(dtype) if dtype.itemsize == 2 else torch.randint(-(2**31), 2**31 - 1, (n, k)).int().view(dtype)
    matrix = BlockMatrix.from_dense(torch.where(keep_mask(pattern, n, k, density), w, torch.zeros_like(w)), pattern)
    matrix.values[::3] = 0.0  # live blocks may hold nothing but zeros
    packed, table = prepare(BLOCK_LINEAR, matrix, [(None, "cpu", "")])
    back = restore(BLOCK_LINEAR, packed, table)
    back.validate()
    for name, tensor in matrix.tensors().items():
        assert back.tensors()[name].dtype == tensor.dtype, name
        assert torch.equal(bits(back.tensors()[name]), bits(tensor)), name


def test_the_kernel_says_what_it_does_not_take() -> None:
    problem = Problem("block_linear", Block(4, 4), 1, 8, 8, "float64", "cpu")
    assert KERNEL.why_not(problem) == "it takes float32, bfloat16, float16, this layer is float64"
    problem = Problem("block_linear", Block(4, 4), 1, 8, 8, "float32", "cuda")
    assert KERNEL.why_not(problem) == "it runs on the CPU, this layer is on cuda"


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=f"no instruction set 'sse9'; its best is {native.best_cpu_isa()}"):
        native.set_cpu_isa("sse9")
