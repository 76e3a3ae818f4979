"""A clock that only says what it is told, and kernels that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from stand_ins import AddKernel, FakeClock, FakeWaiting

from ajour.ops import BITMAP_LINEAR, BLOCK_LINEAR, NM_LINEAR
from ajour.ops.library import LinearOp
from ajour.planning import planner, timing
from ajour.planning.device import OtherWork
from ajour.terms.kernel import Kernel


@pytest.fixture(autouse=True)
def waiting(monkeypatch: pytest.MonkeyPatch) -> FakeWaiting:
    """What the system says of waiting for a core: nothing, unless told."""
    made = FakeWaiting()
    monkeypatch.setattr(timing, "Waiting", lambda: made)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The planner's timer."""
    made = FakeClock()
    monkeypatch.setattr(planner, "timer_for", lambda device: made)
    monkeypatch.setattr(OtherWork, "share", lambda self: 0.0)
    return made


@pytest.fixture
def add_kernel(only_told_kernels: None) -> AddKernel:
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
        op.kernels[name] = kernel  # only_told_kernels takes it out again

    return add


@pytest.fixture(autouse=True)
def only_told_kernels() -> Iterator[None]:
    """Of each op's own kernels the dense ones and the reference; what else takes a problem is this test's business."""
    ops = (NM_LINEAR, BLOCK_LINEAR, BITMAP_LINEAR)
    tables = [dict(op.kernels) for op in ops]
    for op in ops:
        for name in set(op.kernels) - {"aten", "onednn", "reference"}:
            del op.kernels[name]
    yield
    for op, table in zip(ops, tables, strict=True):  # in the tables' order, which says what is taken first
        op.kernels.clear()
        op.kernels.update(table)
