"""Regrow under DDP on two processes: the same masks on both, as gradients and random numbers are the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

WORKER = Path(__file__).with_name("regrow_two_processes.py")


def test_two_processes_move_their_masks_alike(tmp_path: Path) -> None:
    if not distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    both = [subprocess.Popen([sys.executable, WORKER, str(rank), str(tmp_path / "store")]) for rank in range(2)]
    assert [process.wait(timeout=200) for process in both] == [0, 0]
