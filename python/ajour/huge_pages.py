"""Memory for packed weights, on huge pages where the system has some to give.

A kernel that streams weights once pays for the TLB and restarts the prefetcher at each page: 2:4 in float32 with cold
weights of 4096x4096 took 0.80x the time on pages of 2 MiB at 1 row (Zen 5, one thread).
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from ajour.memory import HOST

_PAGE = 2 << 20
_EXTENT = 16 << 20  # what small tensors share, so that each has huge pages without filling its own
_LINE = 128  # bytes; two cache lines are fetched together
_FEWEST = 32 << 10  # bytes of a tensor that are worth it
_SUPPORTED = hasattr(mmap, "MADV_HUGEPAGE")
_lock = threading.Lock()


@dataclass
class _Extent:
    memory: weakref.ref[mmap.mmap]  # lives as long as a tensor in it
    used: int
    end: int


_shared: _Extent | None = None
_mappings: weakref.WeakKeyDictionary[mmap.mmap, range] = weakref.WeakKeyDictionary()  # their addresses


def empty(count: int, dtype: torch.dtype, *, passing: bool = False) -> Tensor:
    """`count` uninitialized elements on the host, at least 64-byte aligned, in a storage of exactly their size.

    Tensors up to 4 MiB share memory with neighbours, and it is freed with the last of them; `passing` ones, needed for
    a moment, don't, lest their room be held as long as weights live. Without such memory they are torch's own.
    """
    size = count * dtype.itemsize
    if size < _FEWEST or not _SUPPORTED or (passing and size <= _EXTENT // 4):
        return torch.empty(count, dtype=dtype, device=HOST)
    with _lock:
        try:
            memory, offset = _mapped(size) if size > _EXTENT // 4 else _room(size)
        except OSError:  # no room for a mapping, or no more of them: torch says so if it has none either
            return torch.empty(count, dtype=dtype, device=HOST)
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)


def copy(t: Tensor) -> Tensor:
    """A contiguous copy of t, on huge pages where t is."""
    if not _is_ours(t):
        return t.clone(memory_format=torch.contiguous_format)
    return empty(t.numel(), t.dtype).view(t.shape).copy_(t)


def settle(t: Tensor) -> None:
    """Moves a tensor of this process' own onto huge pages, as torch copies and unpickles to common ones.

    Whoever holds the tensor sees it there. One that processes share stays where it is.
    """
    if t.device == HOST and t.is_contiguous() and t.nbytes >= _FEWEST and not t.is_shared() and not _is_ours(t):
        t.data = empty(t.numel(), t.dtype).view(t.shape).copy_(t)


def _is_ours(t: Tensor) -> bool:
    with _lock:
        return t.device == HOST and any(t.data_ptr() in addresses for addresses in _mappings.values())


def _unlock() -> None:
    """In a child after fork, where the thread that held the lock does not exist."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


def _room(size: int) -> tuple[mmap.mmap, int]:
    """A place of `size` bytes in the shared extent."""
    global _shared
    memory = _shared.memory() if _shared else None
    if memory is None or _shared is None or _shared.used + size > _shared.end:
        memory, start = _mapped(_EXTENT)
        _shared = _Extent(weakref.ref(memory), start, start + _EXTENT)
    offset = _shared.used
    _shared.used = -(-(offset + size) // _LINE) * _LINE
    return memory, offset


def _mapped(size: int) -> tuple[mmap.mmap, int]:
    """New memory and where in it `size` bytes begin on a huge page; what it never touches takes no memory."""
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr()
    start = -address % _PAGE
    _mappings[memory] = range(address + start, address + start + size)
    whole = size // _PAGE * _PAGE  # the tail stays on common pages, lest a huge one hold mostly nothing
    if whole:
        memory.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return memory, start
