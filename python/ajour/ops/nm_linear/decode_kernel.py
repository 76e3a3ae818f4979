"""nm_linear for 1 to 64 rows on a GPU, at the speed of memory: slabs in the order of the tensor cores, in CUDA.

2:4 goes through the sparse tensor cores; for 1 to 4 rows a configuration "lanes ..." multiplies the same slabs on CUDA
cores, for the planner to compare. Other patterns with a group of 4, 8, 16 or 32 are expanded in registers; they
gain by their bytes. Packed order "nm_slabs": one uint8 tensor (csrc/layout/nm_slabs.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ajour._native import native
from ajour.formats.nm import NMMatrix
from ajour.memory import on_host
from ajour.ops import decode
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

GROUPS = (4, 8, 16, 32)
LANES = "lanes "  # before the rest of a configuration
LANES_ROWS = 4  # of x, at most


@cache
def slabs_of(pattern: Pattern, n: int, k: int) -> Any:
    """The NMSlabs of a weight."""
    assert isinstance(pattern, NM)
    return native.NMSlabs(n, k, pattern.keep, pattern.group)


def _why_not(problem: Problem) -> str | None:
    assert isinstance(problem.pattern, NM)
    if problem.pattern.group not in GROUPS:
        return f"it takes groups of 4, 8, 16 and 32, this pattern is {problem.pattern}"
    if refusal := decode.why_not(problem):
        return refusal
    layout = slabs_of(problem.pattern, problem.n, problem.k)
    return decode.why_no_room(problem, layout.columns, layout.slab_bytes)


def _configs(problem: Problem) -> tuple[str, ...]:
    """Those of every decode kernel, and for 2:4 with few rows the likely best of them without tensor cores."""
    found = decode.configs(problem)
    if problem.pattern == NM(2, 4) and problem.m <= LANES_ROWS:
        return (*found, *(LANES + config for config in found[:2]))
    return found


def _prepack(matrix: NMMatrix, config: str) -> list[Tensor]:
    layout = slabs_of(matrix.pattern, *matrix.shape)
    values, positions = (on_host(t) for t in matrix.tensors().values())
    slabs = torch.empty(layout.bytes, dtype=torch.uint8)
    native.pack_nm_slabs(layout, values.data_ptr(), positions.data_ptr(), slabs.data_ptr())
    return [slabs.view(values.dtype).to(matrix.device)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    assert isinstance(pattern, NM)
    slabs, (n, k) = on_host(packed[0]), shape
    canonical = native.NMLayout(pattern.keep, pattern.group)
    values = torch.empty(n, canonical.kept(k), dtype=slabs.dtype)
    positions = torch.empty(n, canonical.position_bytes(k), dtype=torch.uint8)
    layout = slabs_of(pattern, n, k)
    native.unpack_nm_slabs(layout, slabs.data_ptr(), values.data_ptr(), positions.data_ptr())
    device = packed[0].device
    return NMMatrix({"values": values.to(device), "positions": positions.to(device)}, pattern, shape)


@cache
def _launch(keep: int, group: int, n: int, k: int, tokens: int, config: str, device: int) -> tuple[Any, Any, Any, int]:
    """Product, layout, shape, words of scratch: the same in every call of a layer. Numbers as keys hash fast."""
    layout = slabs_of(NM(keep, group), n, k)
    product = native.lanes_decode if config.startswith(LANES) else native.nm_decode
    shape = decode.shape_of(tokens, n, k, layout.columns, layout.slab_bytes, config.removeprefix(LANES), device)
    return product, layout, shape, shape.scratch_bytes // 2


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    x, m, pattern = decode.columns_together(x), x.shape[0], entry.pattern
    most = LANES_ROWS if entry.config.startswith(LANES) else decode.MOST_ROWS
    if m > most:
        return decode.in_pieces(_run, x, packed, bias, residual, activation, entry, most)
    product, layout, shape, room = _launch(
        pattern.keep,  # type: ignore[union-attr]
        pattern.group,  # type: ignore[union-attr]
        entry.n,
        entry.k,
        decode.tokens_of(m),
        entry.config,
        x.get_device(),
    )
    head = (layout, packed[0].data_ptr(), shape)
    return decode.launch(product, head, room, x, bias, residual, activation, entry)


KERNEL = Kernel(
    name="cuda_decode",
    packing="nm_slabs",
    why_not=_why_not,
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=_configs,
)
