"""What is pruned how: patterns, densities, kinds of mask, the rows of x that each is meant for, and the zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ajour.planning.candidates import Form
from ajour.terms.pattern import NM, Block, Pattern, Unstructured

FEW, MANY = (1, 4), (128, 512)  # rows of x on a CPU: decoding, and prefill or batches
DECODE = (1, 8, 16, 32, 64)  # on a GPU
PREFILL = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SPLIT_FROM = 0.25  # below, the 2:4 part of a split weight alone stores over twice the non-zeros
SKEW = 0.8  # standard deviation of the logarithm of a row's density


@dataclass(frozen=True)
class Case:
    """A pattern with a density (what an N:M pattern keeps is its own), a kind of mask, and the rows it is meant for.

    mask: "random"; "skewed", rows of very different density; "balanced", as many live blocks in every block row.
    values: "e4m3" for a layer in 8-bit floats, else x's own.
    """

    pattern: Pattern
    density: float
    mask: str
    rows: tuple[int, ...]
    values: str = ""

    def __str__(self) -> str:
        return f"{self.values or self.pattern} {self.density:.0%} {self.mask}"

    def forms(self, device: str) -> list[Form]:
        """The ways to store it that are measured: as the pattern says, and half-dense zeros anywhere split in two."""
        split = isinstance(self.pattern, Unstructured) and self.density >= SPLIT_FROM and device == "cpu"
        return [Form(self.pattern), *([Form(self.pattern, split=True)] if split else [])]


def cases(device: str = "cpu") -> list[Case]:
    """Every pattern and density of the targets; skewed masks where rows can differ."""
    return _gpu_cases() if device == "cuda" else _cpu_cases()


def _cpu_cases() -> list[Case]:
    every = (1, 8, 32, *MANY)
    made = [Case(Block(32, 32), density, "random", every) for density in (0.1, 0.25, 0.5)]
    made += [Case(Block(16, 16), 0.1, "random", every), Case(Block(4, 1), 0.1, "random", every)]
    made += [Case(Unstructured(), density, "random", every) for density in (0.05, 0.1, 0.25)]
    both = (*FEW, 8, 32, *MANY)
    made += [Case(NM(2, 4), 0.5, "random", both), Case(NM(1, 4), 0.25, "random", both)]
    made += [Case(Unstructured(), 0.5, "random", both), Case(Unstructured(), 0.7, "random", (1, 8, 128))]
    made += [Case(pattern, 0.1, "skewed", (1, 128)) for pattern in (Block(32, 32), Block(4, 1), Unstructured())]
    made += [Case(Block(32, 32), 0.1, "balanced", (1, 128))]
    return made


def _gpu_cases() -> list[Case]:
    blocks = (64, 512, 2048, 8192)
    made = [Case(NM(2, 4), 0.5, "random", (*DECODE, *PREFILL)), Case(NM(1, 4), 0.25, "random", DECODE)]
    made += [Case(NM(2, 4), 0.5, "random", (*DECODE, *PREFILL), "e4m3")]
    made += [Case(Unstructured(), density, "random", DECODE) for density in (0.5, 0.3, 0.1)]
    for side in (128, 64, 32, 16):
        made += [Case(Block(side, side), density, "random", (1, *blocks)) for density in (0.1, 0.2, 0.5)]
    made += [Case(Block(64, 64), 0.1, mask, blocks) for mask in ("skewed", "balanced")]
    made += [Case(Unstructured(), 0.3, "skewed", DECODE)]
    made += [Case(Block(side, side), 0.05, "random", (16384,)) for side in (128, 64, 32, 16)]
    return made


def tiny_cases(device: str = "cpu") -> list[Case]:
    """The smallest layer at one row: what a call costs; on a GPU one of each op, whose calls differ."""
    made = [Case(Block(16, 16), 0.5, "balanced", (1,))]
    if device == "cuda":
        made += [Case(NM(2, 4), 0.5, "random", (1,)), Case(Unstructured(), 0.3, "random", (1,))]
    return made


def smoke_cases() -> list[Case]:
    """One of each kind."""
    return [
        Case(Block(32, 32), 0.25, "random", (1, 16, 128)),
        Case(Unstructured(), 0.25, "skewed", (1, 16)),
        Case(NM(2, 4), 0.5, "random", (1, 16)),
    ]


def pruned(
    shape: tuple[int, int], case: Case, dtype: torch.dtype, seed: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """A random normal weight [n, k] with the zeros of the case; the same in every run on one kind of device.

    skewed: the density of each row (of blocks) is drawn from a log-normal distribution with the same mean, as real
    pruning leaves rows of very different density.
    """
    generator = torch.Generator(device).manual_seed(seed)
    n, k = shape
    w = torch.randn(n, k, generator=generator, device=device)
    if isinstance(case.pattern, NM):
        group = case.pattern.group
        rank = torch.rand(n, k // group, group, generator=generator, device=device).argsort(-1)
        return torch.where((rank < case.pattern.keep).view(n, k), w, 0.0).to(dtype)
    r, c = (case.pattern.rows, case.pattern.cols) if isinstance(case.pattern, Block) else (1, 1)
    live = _live(-(-n // r), -(-k // c), case, generator, device)
    grid = live.repeat_interleave(r, 0).repeat_interleave(c, 1)[:n, :k]
    return torch.where(grid, w, 0.0).to(dtype)


def _live(rows: int, cols: int, case: Case, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Which blocks (or elements) stay, bool [rows, cols]."""
    density = torch.full((rows, 1), case.density, device=device)
    if case.mask == "skewed":
        noise = torch.randn(rows, 1, generator=generator, device=device)
        density = (density * (SKEW * noise).exp()).clamp(max=1.0)
        density = (density * case.density / density.mean()).clamp(max=1.0)
    drawn = torch.rand(rows, cols, generator=generator, device=device)
    if case.mask == "balanced":
        return drawn.argsort(-1).argsort(-1) < max(1, round(case.density * cols))
    return drawn < density
