"""Tests that only a GPU can run. Without one they are counted aloud, not skipped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent
_NOT_RUN: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes this folder's tests out of a run without a GPU, and remembers them."""
    if torch.cuda.is_available():
        return
    here = [item for item in items if item.path.is_relative_to(_HERE)]
    _NOT_RUN.extend(item.nodeid for item in here)
    items[:] = [item for item in items if not item.path.is_relative_to(_HERE)]
    config.hook.pytest_deselected(items=here)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests nobody has run."""
    if _NOT_RUN:
        terminalreporter.section("tests that need a GPU")
        terminalreporter.write_line(f"{len(_NOT_RUN)} tests of tests/gpu were NOT run: this machine has no GPU")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run of this folder alone is no failure where nothing of it can run."""
    if _NOT_RUN and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
