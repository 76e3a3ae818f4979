"""Refusals are part of what a kernel promises: each one met during the run is printed at its end."""

from __future__ import annotations

from collections import Counter

import pytest

REFUSALS: Counter[tuple[str, str, str]] = Counter()


@pytest.fixture(scope="session")
def refusals() -> Counter[tuple[str, str, str]]:
    """(op, kernel, reason) -> how many problems it refused."""
    return REFUSALS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REFUSALS:
        terminalreporter.section("problems that kernels refused")
        for (op, kernel, reason), count in sorted(REFUSALS.items()):
            terminalreporter.write_line(f"{op} {kernel}: {count} times: {reason}")
