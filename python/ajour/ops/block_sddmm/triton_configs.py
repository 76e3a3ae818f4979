"""Configurations of the Triton kernel of block_sddmm: tokens at a time, blocks side by side, shares of the tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ajour.ops.triton_door import MOST_STAGES, MOST_WARPS
from ajour.terms.errors import KernelError
from ajour.terms.pattern import Block
from ajour.terms.problem import Problem

WIDE = 64  # columns of x side by side: what the tensor cores of sm_90 take at least
MOST_WIDE = 128
PROGRAMS = 264  # below which tokens are shared: two for each multiprocessor of an H100
MOST_SHARES = 16
_SHARED = {False: 96 * 1024, True: 200 * 1024}  # bytes of tiles in flight: on every card, and on sm_90 and sm_100
_CONFIG = re.compile(r"t(\d+) g(\d+) w(\d+) s(\d+) p(\d+)")


def power_of_two(side: int) -> int:
    """The least power of two that is at least `side`, and at least 16."""
    return max(16, 1 << (side - 1).bit_length())


@dataclass(frozen=True)
class Config:
    """What one program computes: `together` blocks of one block row, `tokens` at a time, over one of `shares` of them.

    Shares are summed afterwards, in order, which gives the same bits in every run.
    """

    tokens: int = 64
    together: int = 1
    warps: int = 4
    stages: int = 3
    shares: int = 1

    def __str__(self) -> str:
        return f"t{self.tokens} g{self.together} w{self.warps} s{self.stages} p{self.shares}"


@cache
def parse(config: str) -> Config:
    """The inverse of `str(config)`. Raises KernelError."""
    found = _CONFIG.fullmatch(config)
    if found is None:
        raise KernelError(f"{config!r} is no configuration of block_sddmm; expected something like {str(Config())!r}")
    parsed = Config(*(int(number) for number in found.groups()))
    sizes = parsed.tokens, parsed.together, parsed.warps
    if parsed.tokens < 16 or 0 in sizes or any(each & (each - 1) for each in sizes):
        raise KernelError(f"{config!r} can't run: tokens, blocks and warps are powers of two, tokens from 16 on")
    if not (parsed.warps <= MOST_WARPS and 1 <= parsed.stages <= MOST_STAGES and 1 <= parsed.shares <= MOST_SHARES):
        raise KernelError(
            f"{config!r} can't run: at most {MOST_WARPS} warps, {MOST_STAGES} stages and {MOST_SHARES} shares"
        )
    return parsed


def check(problem: Problem, config: str) -> None:
    """Raises KernelError for a configuration that is none, or whose tiles in flight this device has no room for."""
    assert isinstance(problem.pattern, Block)
    if not _fits(parse(config), problem):
        raise KernelError(f"block_sddmm can't run {config!r}: its tiles of {problem.pattern} exceed shared memory")


def default(pattern: Block, dtype: str) -> Config:
    """That of a table that names none: blocks side by side until tensor cores have their fill, no shares."""
    together = max(1, WIDE // power_of_two(pattern.cols))
    return _config(pattern, dtype, together, 3, 1)


def _config(pattern: Block, dtype: str, together: int, stages: int, shares: int) -> Config:
    sums = power_of_two(pattern.cols) * together * power_of_two(pattern.rows)
    return Config(32 if dtype == "float32" else 64, together, 8 if sums >= 128 * 64 else 4, stages, shares)


def why_not(problem: Problem) -> str | None:
    """Refuses blocks that tensor cores would mostly multiply as padding, and those too large for one program."""
    assert isinstance(problem.pattern, Block)
    sides = problem.pattern.rows, problem.pattern.cols
    if min(sides) < 16 or max(sides) > 128:
        return f"the Triton kernel takes blocks of 16x16 to 128x128, this is {problem.pattern}"
    return None


def configs(problem: Problem) -> tuple[str, ...]:
    """The likely best first: tokens are shared where there would be fewer programs than the card has room for."""
    pattern = problem.pattern
    assert isinstance(pattern, Block)
    side = power_of_two(pattern.cols)
    live = max(1.0, problem.density * -(-problem.n // pattern.rows) * -(-problem.k // pattern.cols))
    first = default(pattern, problem.dtype)
    most = max(1, min(MOST_SHARES, problem.m // (4 * first.tokens)))
    wanted = 1
    while wanted < most and live * wanted < PROGRAMS * first.together:
        wanted *= 2
    widths = [first.together] + [2 * first.together] * (2 * first.together * side <= MOST_WIDE)
    found = [
        _config(pattern, problem.dtype, together, stages, shares)
        for together in widths
        for shares in dict.fromkeys((wanted, min(most, 2 * wanted)))
        for stages in (3, 4)
    ]
    return tuple(dict.fromkeys(str(each) for each in found if _fits(each, problem))) or (str(first),)


def _fits(config: Config, problem: Problem) -> bool:
    """Whether the tiles of x and dy in flight fit shared memory."""
    pattern, size = problem.pattern, 4 if problem.dtype == "float32" else 2
    assert isinstance(pattern, Block)
    sides = config.together * power_of_two(pattern.cols) + power_of_two(pattern.rows)
    is_large = problem.capability is not None and problem.capability[0] in (9, 10)
    return sides * config.tokens * size * config.stages <= _SHARED[is_large]
