"""Host code and device packing of the decode kernels, as small programs beside the emulator."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from emulation import FLAGS, build


def run(source: str, host: Sequence[str], folder: Path, *includes: str) -> None:
    """Compiles a source of tests/emulator with some of csrc and runs it: it says what is wrong."""
    program = build(folder, (source,), host, flags=(*FLAGS, *includes))
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_slabs_packed_on_a_device_are_those_of_the_host_and_unpack_alike(tmp_path: Path) -> None:
    run("slab_words.cpp", ["layout/nm_slabs.cpp"], tmp_path)


def test_weights_packed_on_a_device_are_those_of_the_host_and_unpack_alike(tmp_path: Path) -> None:
    """Canonical forms of dense weights, bitmap slabs and gap rows."""
    host = [f"layout/{name}.cpp" for name in ("bitmap", "bitmap_slabs", "gap_rows", "nm")]
    run("packing.cpp", host, tmp_path)


def test_launches_that_can_run_at_once_share_no_counters(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="Triton, which brings CUDA's headers, is not installed")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    run("counters.cpp", ["cuda/counters.cpp"], tmp_path, f"-I{headers}")
