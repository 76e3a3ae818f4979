"""The build: its CUDA switch answers in one sentence, and the CPU kernels are C++ for Arm too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNITS = sorted(p.relative_to(ROOT) for room in ("cpu", "layout", "memory") for p in ROOT.glob(f"csrc/{room}/*.cpp"))


def configure(build: Path, cuda: str, path: str) -> str:
    """What `cmake` says, on one line; it must refuse."""
    cmake = Path(sys.executable).with_name("cmake")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")} | {"PATH": path}
    command = [cmake, "-S", ROOT, "-B", build, "-G", "Unix Makefiles", f"-DAJOUR_CUDA={cuda}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0, done.stdout
    return " ".join(done.stderr.split())


@pytest.fixture
def path_without_nvcc(tmp_path: Path) -> str:
    """A PATH with the C++ compiler and make alone."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("c++", "g++", "make", "ld", "ar", "ranlib", "as"):
        found = shutil.which(tool)
        if found:
            (tools / tool).symlink_to(found)
    return str(tools)


def test_cuda_on_without_a_compiler_is_one_sentence(tmp_path: Path, path_without_nvcc: str) -> None:
    said = configure(tmp_path / "build", "ON", path_without_nvcc)
    assert "AJOUR_CUDA=ON, but no CUDA compiler was found: put nvcc on the PATH, set CUDACXX, or use" in said
    assert said.count("CMake Error") == 1, said


def test_an_unknown_cuda_switch_is_named(tmp_path: Path, path_without_nvcc: str) -> None:
    said = configure(tmp_path / "build", "maybe", path_without_nvcc)
    assert "AJOUR_CUDA is 'maybe'; expected AUTO, ON or OFF" in said
    assert said.count("CMake Error") == 1, said


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_the_cpu_part_is_cpp_for_arm(unit: Path) -> None:
    """Needs a cross compiler, which is optional: `apt-get install g++-aarch64-linux-gnu`."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-g++ (apt-get install g++-aarch64-linux-gnu): NEON is not compiled here")
    isa = ["-DAJOUR_ISA=portable"] if unit.parent.name == "cpu" and unit.stem != "isa" else []
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", "-Icsrc", *isa]
    done = subprocess.run([compiler, *flags, unit], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
