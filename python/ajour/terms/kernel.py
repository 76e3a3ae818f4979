"""A kernel: how an op is computed, fast, on one kind of device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ajour.terms.problem import Problem

PRODUCTS = ("forward", "dx", "dw")  # of a layer that is trained


@cache
def config_of(config: str, product: str) -> str:
    """The part of a configuration that is for one of PRODUCTS.

    A layer that is trained names all three, "forward / dx / dw". Without a part of its own dx goes by the forward's,
    and dw by its kernel's default, the empty one.
    """
    parts = config.split(" / ")
    return {"forward": parts[0], "dx": (parts[1:] or parts)[0], "dw": "".join(parts[2:3])}[product]


def config_for(parts: Sequence[str]) -> str:
    """The inverse: the configuration that names one for each of PRODUCTS; empty for a kernel without choices."""
    return " / ".join(parts) if any(parts) else ""


def no_configs(problem: Problem) -> tuple[str, ...]:
    """A kernel without choices has one configuration, the empty one."""
    return ("",)


@dataclass(frozen=True)
class Kernel:
    """One row of an op's KERNELS table.

    name:      how it is named in plans ("cpu", "triton", ...).
    packing:   the name of the packed order that it reads; kernels of one op that name the same order share its tensors.
    why_not:   None if the kernel takes the problem, else the reason in one sentence.
    prepack:   (matrix, config) -> the tensors that `run` reads, on the matrix' device.
    unpack:    (tensors, pattern, shape) -> the matrix; the bit-exact inverse of prepack, whatever the config.
    run:       (x: [m, k], packed, bias, residual, activation, entry) -> y: [m, n], freshly allocated. No size is 0; x
               may be strided, bias: [n] and residual: [m, n] are contiguous; dtypes, shapes and devices were checked.
               `entry` is a RowEntry (n, k, pattern, config).
    configs:   every configuration worth timing, each a short string that `run` and `prepack` understand; the planner
               times them and writes the winner into the plan.
    check:     (problem, config) -> None; raises KernelError for a configuration that `run` would refuse, in this build
               or for this problem. None where those that `configs` lists are all there are.
    run_t:     (dy: [m, n], packed, entry) -> dy @ w: [m, k], with x as `run` has it; None where a gradient goes through
               the dense weight.
    planned:   whether a plan may choose it; a kernel that is there for training is not worth timing.
    """

    name: str
    packing: str
    why_not: Callable[[Problem], str | None]
    prepack: Callable[[Any, str], list[Any]]
    unpack: Callable[[Sequence[Any], Any, tuple[int, int]], Any]
    run: Callable[..., Any]
    configs: Callable[[Problem], tuple[str, ...]] = no_configs
    check: Callable[[Problem, str], None] | None = None
    run_t: Callable[..., Any] | None = None
    planned: bool = True


@dataclass(frozen=True)
class SampledKernel:
    """One row of the KERNELS table of an op that computes a product at stored places only.

    name:      that of the kernel whose training it serves.
    why_not:   None if the kernel takes the problem, else the reason in one sentence.
    run:       (gradient, dy: [m, n], x: [m, k], index, accumulate, entry) -> None; writes the stored places of
               dy.T @ x into the gradient, or adds them to it. No size is 0; dy and x may be strided, all else was
               checked and is contiguous. `entry` is a RowEntry (n, k, pattern, config).
    configs:   every configuration worth timing.
    check:     as a Kernel's; None for a kernel without choices.
    """

    name: str
    why_not: Callable[[Problem], str | None]
    run: Callable[..., None]
    configs: Callable[[Problem], tuple[str, ...]] = no_configs
    check: Callable[[Problem, str], None] | None = None
