"""Host code and device packing of the decode kernels, as small programs beside the emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from emulated import ROOT

FLAGS = ["-std=c++17", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"]


def run(program: str, source: str, folder: Path, *includes: str) -> None:
    """Compiles tests/emulator/`program`.cpp with one source of csrc and runs it: it says what is wrong."""
    files = [str(ROOT / "tests" / "emulator" / f"{program}.cpp"), str(ROOT / "csrc" / source)]
    built = folder / program
    compiler = shutil.which("c++") or "g++"
    subprocess.run([compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *includes, *files, "-o", str(built)], check=True)
    done = subprocess.run([built], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_slabs_packed_on_a_device_are_those_of_the_host_and_unpack_alike(tmp_path: Path) -> None:
    run("slab_words", "layout/nm_slabs.cpp", tmp_path)


def test_launches_that_can_run_at_once_share_no_counters(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="Triton, which brings CUDA's headers, is not installed")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    run("counters", "cuda/counters.cpp", tmp_path, f"-I{headers}")
