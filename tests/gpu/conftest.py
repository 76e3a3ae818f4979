"""Tests that only a GPU can run; without one they are counted and named as not run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ajour._native import HAS_CUDA

_HERE = Path(__file__).parent
_NOT_RUN: list[str] = []


def _reason() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    return None if HAS_CUDA else "ajour was built without CUDA"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _reason()
    for item in items:
        if reason and item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.skip(reason=f"{reason}: GPU tests were not run"))
            _NOT_RUN.append(item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _NOT_RUN:
        terminalreporter.section("GPU tests that were not run")
        terminalreporter.write_line(f"{len(_NOT_RUN)} tests in tests/gpu were NOT run: {_reason()}")
