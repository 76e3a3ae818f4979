"""Random block-sparse weights, and the instruction sets of this processor."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats import BlockMatrix
from ajour.terms.pattern import Block
from pruned import keep_mask

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
PRESENT = LEVELS[: LEVELS.index(native.best_cpu_isa()) + 1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# lanes along either side of a block, odd sides (no pairs of bf16), sides that overhang 97x131
BLOCKS = (
    *(Block(32, 32), Block(16, 16), Block(8, 8), Block(48, 16), Block(32, 1), Block(4, 1)),
    *(Block(1, 8), Block(5, 7), Block(3, 64), Block(31, 32)),
)


def drawn(pattern: Block, n: int, k: int, dtype: torch.dtype, density: float = 0.4, skew: bool = False) -> BlockMatrix:
    w = torch.where(keep_mask(pattern, n, k, density, skew), torch.randn(n, k), 0.0).to(dtype)
    return BlockMatrix.from_dense(w, pattern)


def levels() -> Iterator[str]:
    """Each instruction set of this processor in turn, in use; the best one again at the end."""
    try:
        for level in PRESENT:
            native.set_cpu_isa(level)
            yield level
    finally:
        native.set_cpu_isa(native.best_cpu_isa())


def dense_of(blocks: Tensor, matrix: BlockMatrix) -> Tensor:
    """The dense matrix [n, k] with these blocks at the live places of `matrix`."""
    return BlockMatrix({**matrix.tensors(), "blocks": blocks}, matrix.pattern, matrix.shape).to_dense()


def live_places(matrix: BlockMatrix) -> Tensor:
    """1.0 at the places [n, k] of live blocks, in float64, else 0.0."""
    return dense_of(torch.ones(matrix.values.shape, dtype=torch.float64), matrix)


def at_the_end_of_a_page(t: Tensor) -> Tensor:
    """A copy of t, contiguous, whose last byte is followed by a page that must not be touched."""
    size = t.numel() * t.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=pages - size).view(t.shape)
    return copy.copy_(t)
