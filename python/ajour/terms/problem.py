"""A problem: everything a kernel may ask before it says yes or no."""

from __future__ import annotations

from dataclasses import dataclass

from ajour.terms.pattern import Pattern

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # as the compiled part numbers them


@dataclass(frozen=True)
class Problem:
    """y: [m, n] = activation(x: [m, k] @ w: [n, k].T + bias: [n]) + residual: [m, n], with a sparse w."""

    op: str
    pattern: Pattern
    m: int
    n: int
    k: int
    dtype: str  # as torch names it, without "torch."
    device: str  # "cpu" or "cuda"
    capability: tuple[int, int] | None = None  # (9, 0) on Hopper, None on a CPU
    density: float = 1.0  # non-zeros / (n * k)
    activation: str = "none"
