"""nm_linear for 1 to 64 rows on a GPU, at the speed of memory: slabs in the order of the tensor cores, in CUDA.

2:4 goes through the sparse tensor cores; for 1 to 4 rows a configuration "lanes ..." multiplies the same slabs on CUDA
cores, for the planner to compare. Other patterns with a group of 4, 8, 16 or 32 are expanded in registers; they
gain by their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from ajour._native import native
from ajour.memory import lent
from ajour.ops import decode
from ajour.ops.nm_linear import slabs
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

GROUPS = (4, 8, 16, 32)
LANES = "lanes "  # before the rest of a configuration
LANES_ROWS = 4  # of x, at most


def _why_not(problem: Problem) -> str | None:
    assert isinstance(problem.pattern, NM)
    if problem.pattern.group not in GROUPS:
        return f"it takes groups of 4, 8, 16 and 32, this pattern is {problem.pattern}"
    if refusal := decode.why_not(problem):
        return refusal
    layout = slabs.layout_of(problem.pattern, problem.n, problem.k)
    return decode.why_no_room(problem, layout.columns, layout.slab_bytes)


def _configs(problem: Problem) -> tuple[str, ...]:
    """Those of every decode kernel, and for 2:4 with few rows the likely best of them without tensor cores."""
    found = decode.configs(problem)
    if problem.pattern == NM(2, 4) and problem.m <= LANES_ROWS:
        return (*found, *(LANES + config for config in found[:2]))
    return found


@cache
def _launch(keep: int, group: int, n: int, k: int, m: int, config: str, device: int) -> tuple[Any, Any, Any, int]:
    """Product, layout, shape, words of scratch: the same in every call of a layer. Numbers as keys hash fast."""
    layout = slabs.layout_of(NM(keep, group), n, k)
    product = native.lanes_decode if config.startswith(LANES) else native.nm_decode
    shape = decode.shape_of(m, n, k, layout.columns, layout.slab_bytes, config.removeprefix(LANES), device)
    return product, layout, shape, shape.scratch_bytes // 2


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    m, pattern = x.shape[0], entry.pattern
    most = LANES_ROWS if entry.config.startswith(LANES) else decode.MOST_ROWS
    if m > most:
        return decode.in_pieces(_run, x, packed, bias, residual, activation, entry, most)
    product, layout, shape, room = _launch(
        pattern.keep,  # type: ignore[union-attr]
        pattern.group,  # type: ignore[union-attr]
        entry.n,
        entry.k,
        m,
        entry.config,
        x.get_device(),
    )
    head = (layout, lent(packed[0]), shape)
    return decode.launch(product, head, room, x, bias, residual, activation, entry)


KERNEL = Kernel(
    name="cuda_decode",
    packing=slabs.PACKING,
    why_not=_why_not,
    prepack=slabs.prepack,
    unpack=slabs.unpack,
    run=_run,
    configs=_configs,
)
