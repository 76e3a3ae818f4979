"""One build of the emulated kernel for the whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
from sm80_emulated import build


@pytest.fixture(scope="session")
def sm80(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled emulator."""
    return build(tmp_path_factory.mktemp("sm80"))
