"""Small suites on stand-ins of clocks: what a benchmark's test starts from."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import ops
from benchmarks.cases import smoke_cases
from benchmarks.shapes import SMOKE
from rich.console import Console

from ajour.ops import BLOCK_LINEAR
from ajour.planning.timing import Side

CPU = torch.device("cpu")


def told(side: Side, first: int, count: int) -> float:
    """A clock: aten 200, oneDNN 100, everything else 40 µs."""
    return {"aten": 200.0, "onednn": 100.0}.get(side.name, 40.0)


def settings(**changes: Any) -> ops.Settings:
    """The block case on the smoke shape in float32."""
    return replace(
        ops.Settings(SMOKE, smoke_cases()[:1], [torch.float32], [1], CPU, smoke=True, gradients=False), **changes
    )


def run_command(*arguments: str) -> tuple[int, str]:
    """The exit code of python -m benchmarks, and what it printed."""
    out = io.StringIO()
    code = command.main(arguments, Console(file=out, width=200))
    return code, out.getvalue()


def spoil_block_kernel(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """block_linear's CPU kernel gives another answer."""
    kernel = BLOCK_LINEAR.kernels["cpu"]
    monkeypatch.setitem(BLOCK_LINEAR.kernels, "cpu", replace(kernel, run=lambda *args: spoil(kernel.run(*args))))
