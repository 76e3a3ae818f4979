"""Kernels that the compiled part runs by itself, on the CPU: what they refuse, and how Python calls one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from ajour.terms.errors import KernelError
from ajour.terms.problem import ACTIVATION_CODES, Problem
from ajour.terms.row_table import RowEntry

FLOATS = {"float32": 0, "bfloat16": 1, "float16": 2}  # as the compiled part numbers them


def why_not(problem: Problem) -> str | None:
    """The refusal that every such kernel shares."""
    if problem.device != "cpu":
        return f"it runs on the CPU, this layer is on {problem.device}"
    if problem.dtype not in FLOATS:
        return f"it takes {', '.join(FLOATS)}, this layer is {problem.dtype}"
    return None


class CompiledRun:
    """A kernel's `run` that is a function of the compiled part: calls of the op reach it without Python.

    tensors:  how many it reads.
    compiled: (entry) -> that function (csrc/cpu/linear_call.h), which takes addresses.
    """

    def __init__(self, tensors: int, compiled: Callable[[RowEntry], Any]) -> None:
        self.tensors, self.compiled = tensors, cache(compiled)

    def __call__(
        self,
        x: Tensor,
        packed: Sequence[Tensor],
        bias: Tensor | None,
        residual: Tensor | None,
        activation: str,
        entry: RowEntry,
    ) -> Tensor:
        """What the compiled part does by itself where it can, for what only Python can prepare."""
        if len(packed) != self.tensors:
            raise KernelError(
                f"{entry.kernel} reads {self.tensors} packed tensors, its row table gives it {len(packed)}"
            )
        if x.stride(1) != 1:
            x = x.contiguous()
        y = x.new_empty(x.shape[0], entry.n)
        self.compiled(entry)(
            [tensor.data_ptr() for tensor in packed],
            x.data_ptr(),
            x.shape[0],
            x.stride(0),
            0 if bias is None else bias.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            ACTIVATION_CODES[activation],
            y.data_ptr(),
        )
        return y
