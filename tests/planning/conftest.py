"""A clock that only says what it is told, and kernels that do as they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from stand_ins import AddKernel, FakeClock

from ajour.ops import BITMAP_LINEAR, BLOCK_LINEAR, NM_LINEAR
from ajour.ops.library import LinearOp
from ajour.planning import planner
from ajour.planning.device import OtherWork
from ajour.terms.kernel import Kernel


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The planner's timer."""
    made = FakeClock()
    monkeypatch.setattr(planner, "timer_for", lambda device: made)
    monkeypatch.setattr(OtherWork, "share", lambda self: 0.0)
    return made


@pytest.fixture
def add_kernel(monkeypatch: pytest.MonkeyPatch) -> AddKernel:
    """add(op, name, spoil=..., why_not=..., packing=...): a kernel beside the op's own, right unless spoiled."""

    def add(
        op: LinearOp,
        name: str,
        spoil: Callable[[torch.Tensor], torch.Tensor] = lambda y: y,
        **changes: Any,
    ) -> None:
        reference = op.kernels["reference"]

        def run(*args: Any) -> torch.Tensor:
            return spoil(reference.run(*args))

        kernel: Kernel = replace(reference, name=name, run=run, **changes)
        monkeypatch.setitem(op.kernels, name, kernel)

    return add


@pytest.fixture(autouse=True)
def only_told_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each op's own kernels the dense ones and the reference; what else takes a problem is this test's business."""
    for op in (NM_LINEAR, BLOCK_LINEAR, BITMAP_LINEAR):
        for name in list(op.kernels):
            if name not in ("aten", "onednn", "reference"):
                monkeypatch.delitem(op.kernels, name)
