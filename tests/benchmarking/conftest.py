"""No clock decides in tests."""

from __future__ import annotations

import pytest
from benchmarks import models, ops
from suites import told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as told: aten 200, oneDNN 100, everything else 40 µs."""
    monkeypatch.setattr(ops.Settings, "timer", lambda self, mode: told)
    monkeypatch.setattr(models.Settings, "timer", lambda self, mode: told)
