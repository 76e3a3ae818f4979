"""Weights of real models by name, and the zeros that pruning leaves in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ajour.terms.pattern import NM, Block, Pattern, Unstructured

# name -> (n, k): out and in features
SHAPES = {
    "MiniLM up": (1536, 384),
    "BERT-base attention": (768, 768),
    "BERT-base up": (3072, 768),
    "BERT-base down": (768, 3072),
    "BERT-large up": (4096, 1024),
    "Llama-7B attention": (4096, 4096),
}
SMOKE = {"smoke": (96, 64)}
FEW, MANY = (1, 4), (128, 512)  # rows of x: decoding, and prefill or batches
SKEW = 0.8  # standard deviation of the logarithm of a row's density


@dataclass(frozen=True)
class Case:
    """A pattern with a density (what an N:M pattern keeps is its own), a kind of mask, and the rows it is meant for."""

    pattern: Pattern
    density: float
    mask: str
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.pattern} {self.density:.0%} {self.mask}"


def cases() -> list[Case]:
    """Every pattern and density of the targets; skewed masks where rows can differ."""
    every = (1, 8, 32, *MANY)
    made = [Case(Block(32, 32), density, "random", every) for density in (0.1, 0.25, 0.5)]
    made += [Case(Block(16, 16), 0.1, "random", every), Case(Block(4, 1), 0.1, "random", every)]
    made += [Case(Unstructured(), density, "random", every) for density in (0.05, 0.1, 0.25)]
    made += [Case(NM(2, 4), 0.5, "random", (*FEW, *MANY)), Case(NM(1, 4), 0.25, "random", (*FEW, *MANY))]
    made += [Case(Unstructured(), 0.5, "random", FEW)]
    made += [Case(pattern, 0.1, "skewed", (1, 128)) for pattern in (Block(32, 32), Block(4, 1), Unstructured())]
    return made


def smoke_cases() -> list[Case]:
    """One of each kind."""
    return [
        Case(Block(32, 32), 0.25, "random", (1, 16)),
        Case(Unstructured(), 0.25, "skewed", (1, 16)),
        Case(NM(2, 4), 0.5, "random", (1, 16)),
    ]


def pruned(shape: tuple[int, int], case: Case, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A random normal weight [n, k] with the zeros of the case.

    skewed: the density of each row (of blocks) is drawn from a log-normal distribution with the same mean, as real
    pruning leaves rows of very different density.
    """
    generator = torch.Generator().manual_seed(seed)
    n, k = shape
    w = torch.randn(n, k, generator=generator)
    if isinstance(case.pattern, NM):
        group = case.pattern.group
        rank = torch.rand(n, k // group, group, generator=generator).argsort(-1)
        return torch.where((rank < case.pattern.keep).view(n, k), w, 0.0).to(dtype)
    r, c = (case.pattern.rows, case.pattern.cols) if isinstance(case.pattern, Block) else (1, 1)
    rows, cols = -(-n // r), -(-k // c)
    density = torch.full((rows, 1), case.density)
    if case.mask == "skewed":
        density = (density * (SKEW * torch.randn(rows, 1, generator=generator)).exp()).clamp(max=1.0)
        density = (density * case.density / density.mean()).clamp(max=1.0)
    live = torch.rand(rows, cols, generator=generator) < density
    grid = live.repeat_interleave(r, 0).repeat_interleave(c, 1)[:n, :k]
    return torch.where(grid, w, 0.0).to(dtype)
