"""The one door to Triton: a kernel's record exists without it, its module is imported when a problem may need it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel, SampledKernel
from ajour.terms.problem import Problem

DTYPES = ("float32", "bfloat16", "float16")
_SHARED_BYTES = 96 * 1024  # the least that a block may use on sm_80 and newer, 99 KiB of sm_86, with some left over
MOST_WARPS, MOST_STAGES = 32, 16
_TILE = re.compile(r"m(\d+) n(\d+) k(\d+) w(\d+) s(\d+)")


@dataclass(frozen=True)
class Tile:
    """What one program computes: m rows by n out features, k in features at a time; powers of two, at least 16."""

    m: int = 16
    n: int = 64
    k: int = 64
    warps: int = 4
    stages: int = 3

    def __str__(self) -> str:
        return f"m{self.m} n{self.n} k{self.k} w{self.warps} s{self.stages}"

    def fits(self, dtype: str) -> bool:
        """Whether the tiles of x and w in flight leave every card room."""
        size = 4 if dtype == "float32" else 2
        return (self.m + self.n) * self.k * size * self.stages <= _SHARED_BYTES


@cache
def parse_tile(config: str) -> Tile:
    """The inverse of `str(tile)`; the empty string is the default tile. Raises KernelError."""
    if not config:
        return Tile()
    found = _TILE.fullmatch(config)
    if found is None:
        raise KernelError(f"{config!r} is no Triton tile; expected something like {str(Tile())!r}")
    tile = Tile(*(int(side) for side in found.groups()))
    if min(tile.m, tile.n, tile.k) < 16 or any(each & (each - 1) for each in (tile.m, tile.n, tile.k, tile.warps)):
        raise KernelError(f"{config!r} is no Triton tile: sides and warps are powers of two, sides from 16 on")
    if not (1 <= tile.warps <= MOST_WARPS and 1 <= tile.stages <= MOST_STAGES):
        raise KernelError(f"{config!r} is no Triton tile: it has 1 to {MOST_WARPS} warps and 1 to {MOST_STAGES} stages")
    return tile


def tiles(problem: Problem, n: tuple[int, ...], k: tuple[int, ...]) -> tuple[str, ...]:
    """The tiles of those sides that are worth timing for so many rows, the likely best one first.

    128 rows would spill registers, and so would 64 with fewer than 8 warps (ptxas 12.8, sm_80 and sm_90).
    """
    rows = [side for side in (16, 32, 64) if side == 16 or side < 2 * problem.m]
    found = [Tile(m, side, depth, 8 if m == 64 else 4) for m in reversed(rows[-2:]) for side in n for depth in k]
    found += [Tile(tile.m, tile.n, tile.k, tile.warps, 2) for tile in found]
    return tuple(str(tile) for tile in found if tile.fits(problem.dtype))


def check_tile(problem: Problem, config: str) -> None:
    """Raises KernelError for a configuration that is no tile."""
    parse_tile(config)


def triton_kernel(
    module: str,
    canonical: Kernel,
    *,
    name: str = "triton",
    check: Callable[[Problem, str], None] = check_tile,
    transposed: bool = False,
) -> Kernel:
    """The record of the kernel in that module, which offers why_not, configs, run and, if `transposed`, run_t.

    It reads the packed tensors of `canonical`: the canonical ones need no second copy and can be trained.
    """

    def why_not(problem: Problem) -> str | None:
        refusal: str | None = _why_not(problem) or import_module(module).why_not(problem)
        return refusal

    def configs(problem: Problem) -> tuple[str, ...]:
        found: tuple[str, ...] = import_module(module).configs(problem)
        return found

    def run(*args: Any) -> Tensor:
        y: Tensor = import_module(module).run(*args)
        return y

    def run_t(*args: Any) -> Tensor:
        dx: Tensor = import_module(module).run_t(*args)
        return dx

    back = run_t if transposed else None
    return replace(canonical, name=name, why_not=why_not, run=run, configs=configs, check=check, run_t=back)


def triton_sampled(module: str, name: str, check: Callable[[Problem, str], None]) -> SampledKernel:
    """The record of the kernel in that module that computes stored places only; it offers why_not, configs and run."""

    def why_not(problem: Problem) -> str | None:
        refusal: str | None = _why_not(problem) or import_module(module).why_not(problem)
        return refusal

    def configs(problem: Problem) -> tuple[str, ...]:
        found: tuple[str, ...] = import_module(module).configs(problem)
        return found

    def run(*args: Any) -> None:
        import_module(module).run(*args)

    return SampledKernel(name, why_not, run, configs, check)


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cuda":
        return f"Triton kernels run on CUDA, this layer is on {problem.device}"
    if find_spec("triton") is None:
        return "Triton is not installed; the extra ajour[triton] brings it"
    if problem.dtype not in DTYPES:
        return f"the Triton kernels take {', '.join(DTYPES)}, this layer is {problem.dtype}"
    if problem.capability is not None and problem.capability < (8, 0):
        found = ".".join(map(str, problem.capability))
        return f"the Triton kernels need compute capability 8.0, this device has {found}"
    return None
