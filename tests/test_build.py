"""The build: its switches answer in one sentence, CUTLASS joins only for CUDA, and the CPU kernels are C++ for Arm."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


def fake_nvcc(folder: Path, release: str) -> Path:
    """A compiler that can only tell its version."""
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        ("AUTO", "-- Building without CUDA: {nvcc} is of CUDA 12.4, the kernels need 12.5 or later"),
        (
            "ON",
            "AJOUR_CUDA=ON, but {nvcc} is of CUDA 12.4, the kernels need 12.5 or later: set CUDACXX to a later nvcc",
        ),
    ],
)
def test_a_cuda_compiler_that_is_too_old_is_left_alone_or_refused(tmp_path: Path, cuda: str, said: str) -> None:
    """AUTO goes on as if there were none; what else this environment lacks is of no account here."""
    nvcc = fake_nvcc(tmp_path / "old", "12.4")
    command = [Path(sys.executable).with_name("cmake"), "-S", ROOT, "-B", tmp_path / "build", "-G", "Unix Makefiles"]
    command += [f"-DAJOUR_CUDA={cuda}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = "".join((done.stdout + done.stderr).split())  # CMake breaks the lines of an error
    assert "".join(said.format(nvcc=nvcc).split()) in found, done.stdout + done.stderr
    assert "CUDAcompileridentification" not in found
    assert done.stderr.count("CMake Error") == 1 or cuda == "AUTO", done.stderr


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """build_backend/backend.py, where nobody has set a compiler or a switch."""
    pytest.importorskip("scikit_build_core", reason="the build's own requirement is not installed: no isolated build")
    for name in ("AJOUR_CUDA", "CUDACXX", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    found = importlib.util.spec_from_file_location("backend", ROOT / "build_backend" / "backend.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


OFF = {"cmake.define.AJOUR_CUDA": "OFF"}


@pytest.mark.parametrize(
    ("release", "place", "environment", "settings", "asked"),
    [
        (None, "PATH", {}, {}, False),
        ("13.0", "PATH", {}, {}, True),
        ("12.5", "CUDACXX", {}, {}, True),
        ("12.10", "CUDA_PATH", {}, {}, True),
        ("12.4", "PATH", {}, {}, False),
        ("11.8", "CUDACXX", {}, {}, False),
        ("13.0", "PATH", {"AJOUR_CUDA": "OFF"}, {}, False),
        ("13.0", "PATH", {}, OFF, False),
        ("13.0", "PATH", {"AJOUR_CUDA": "OFF"}, {"cmake.define.AJOUR_CUDA": "ON"}, True),
    ],
)
def test_cutlass_is_required_only_where_a_cuda_compiler_will_read_it(
    backend: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    release: str | None,
    place: str,
    environment: dict[str, str],
    settings: dict[str, str],
    asked: bool,
) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "toolkit" / "bin"
    nvcc = fake_nvcc(folder, release) if release else folder / "nvcc"
    monkeypatch.setenv("PATH", str(folder) if place == "PATH" else str(tmp_path))
    values = {"CUDACXX": f"{nvcc} -ccbin g++", "CUDA_PATH": str(folder.parent)}
    for name, value in (environment | {key: values[key] for key in values if key == place}).items():
        monkeypatch.setenv(name, value)
    for hook in (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable):
        assert any(each.startswith("nvidia-cutlass") for each in hook(settings)) == asked


def test_the_backend_has_every_hook_of_the_one_it_extends(backend: ModuleType) -> None:
    from scikit_build_core import build

    assert sorted(backend.__all__) == sorted(build.__all__)
    assert all(callable(getattr(backend, name)) for name in backend.__all__)


SM90 = """cmake_minimum_required(VERSION 3.24)
project(headers NONE)
set(Python_EXECUTABLE {python})
add_library(_C OBJECT {root}/csrc/layout/zeros.cpp)
include({root}/cmake/sm90.cmake)
"""


def configure_sm90(folder: Path, *switches: str) -> str:
    """What cmake/sm90.cmake says on its own, for a Python without CUTLASS's package; nothing is compiled."""
    (folder / "CMakeLists.txt").write_text(SM90.format(python=shutil.which("true"), root=ROOT))
    cmake = Path(sys.executable).with_name("cmake")
    command = [cmake, "-S", folder, "-B", folder / "build", "-G", "Unix Makefiles", *switches]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return " ".join((done.stdout + done.stderr).split())


def headers_of(folder: Path, version: str) -> Path:
    """A folder that holds CUTLASS's version and nothing else of it."""
    headers = folder / "include" / "cutlass"
    headers.mkdir(parents=True)
    names = version.split()
    (headers / "version.h").write_text(
        "".join(f"#define CUTLASS_{name} {number}\n" for name, number in zip(names[::2], names[1::2], strict=True))
    )
    return headers.parent


@pytest.mark.parametrize(
    ("configs", "version", "said"),
    [
        ("DEFAULT", None, "No CUTLASS headers: building without cuda_sm90. pip install --no-deps 'nvidia-cutlass>=4.2"),
        (
            "DEFAULT",
            "MAJOR 3 MINOR 9",
            "is not CUTLASS 4.2: pip install 'nvidia-cutlass>=4.2,<4.3', or set AJOUR_CUT",
        ),
        ("128x128", "MAJOR 4 MINOR 2", "names '128x128'; expected DEFAULT, ALL, or a list like 256x128x128_2x1"),
        ("DEFAULT", "", "which holds no cutlass/version.h"),
    ],
)
def test_missing_headers_and_unknown_configurations_are_named(
    tmp_path: Path, configs: str, version: str | None, said: str
) -> None:
    folder = "" if version is None else headers_of(tmp_path, version) if version else tmp_path
    assert said in configure_sm90(tmp_path, f"-DAJOUR_SM90_CONFIGS={configs}", f"-DAJOUR_CUTLASS={folder}")


def sm90_sources(folder: Path, *switches: str) -> list[str]:
    """The sources that a build compiles on CUTLASS's headers, each a minute of a core."""
    said = configure_sm90(folder, f"-DAJOUR_CUTLASS={headers_of(folder, 'MAJOR 4 MINOR 2')}", *switches)
    assert "AJOUR_SM90" not in said, said
    return sorted(path.stem for path in folder.glob("build/sm90/*.cu"))


def test_a_build_has_every_dtype_unless_it_is_told_which(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("default", "listed", "all", "wrong")]
    for folder in folders:
        folder.mkdir()
    default = ["bfloat16_256x128x128_2x1", "e4m3_128x128x256_2x1", "float16_256x128x128_2x1"]
    assert sm90_sources(folders[0]) == default
    listed = ("-DAJOUR_SM90_DTYPES=float16;e4m3", "-DAJOUR_SM90_CONFIGS=128x64x128_2x1;128x128x256_1x1")
    assert sm90_sources(folders[1], *listed) == ["e4m3_128x128x256_1x1", "float16_128x64x128_2x1"]
    everything = sm90_sources(folders[2], "-DAJOUR_SM90_CONFIGS=ALL")
    assert len(everything) == 14
    assert set(default) <= set(everything)
    switches = "-DAJOUR_SM90_DTYPES=fp16", f"-DAJOUR_CUTLASS={headers_of(folders[3], 'MAJOR 4 MINOR 2')}"
    said = "AJOUR_SM90_DTYPES names 'fp16'; expected ALL, or a list of bfloat16, float16, e4m3"
    assert said in configure_sm90(folders[3], *switches)


def test_continuous_integration_compiles_two_of_them(tmp_path: Path) -> None:
    """One of 16 bits and one of 8, whose instructions tests/sm90 reads."""
    named = re.search(r'^export AJOUR_SM90_DTYPES="(.*)"', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert named is not None
    sources = sm90_sources(tmp_path, f"-DAJOUR_SM90_DTYPES={named[1]}")
    assert [name.split("_")[0] for name in sources] == ["bfloat16", "e4m3"]


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
