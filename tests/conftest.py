"""Every uninitialized tensor is poisoned: a kernel that forgets to write an element fails loudly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._device import _device_constructors

from ajour import huge_pages
from ajour._native import native
from ajour.planning import waiting

# `with torch.device(...)` remembers torch's constructors when it is first used; those are the real ones
_device_constructors()


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = make(*args, **kwargs)
        if torch.compiler.is_compiling() or out.device.type == "meta" or type(out) is not torch.Tensor:
            return out
        return out.fill_(float("nan")) if out.is_floating_point() else out

    return poisoned


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """NaN in everything that torch.empty, empty_like, empty_strided and new_empty, or the compiled part, hand out."""
    if "unpoisoned" not in request.keywords:  # tracing replaces these functions itself
        monkeypatch.setattr(huge_pages, "empty", _poisoned(huge_pages.empty))
        for name in ("empty", "empty_like", "empty_strided"):
            monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
        monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))
        native.poison_outputs(True)
    yield
    native.poison_outputs(False)


@pytest.fixture
def kernels_in_python() -> Iterator[None]:
    """The compiled part declines every call of an op, so that Python looks the kernel up in the op's table."""
    native.bypass_compiled_linear(True)
    yield
    native.bypass_compiled_linear(False)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs do on this machine disturbs no measurement: the clocks of tests are told their times."""
    monkeypatch.setattr(waiting, "_TASKS", Path("/nowhere"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random weights in every run."""
    torch.manual_seed(0)
