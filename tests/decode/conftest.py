"""One build of the emulator for the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated import build


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled emulator."""
    return build(tmp_path_factory.mktemp("emulator"))
