"""A build with some configurations, whatever this one has; and CUTLASS's own layouts, compiled for the CPU."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ajour.ops import sm90

ROOT = Path(__file__).resolve().parents[2]
SIXTEEN = ("256x128x128_2x1", "128x64x128_1x2")
EIGHT = ("128x128x256_2x1",)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """As if these configurations had been built; launches are remembered."""
    fake = SimpleNamespace(sm90_configs={"bfloat16": SIXTEEN, "float16": SIXTEEN, "e4m3": EIGHT}, launched=[])
    fake.Sm90Call = lambda *described: SimpleNamespace(described=described, scratch_bytes=100)
    fake.sm90_linear = lambda *arguments: fake.launched.append(arguments)
    monkeypatch.setattr(sm90, "native", fake)
    monkeypatch.setattr(sm90, "HAS_CUDA", True)
    monkeypatch.setattr(sm90, "_processors", lambda device: 132)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    for remembered in (sm90.parse, sm90._prepared):
        remembered.cache_clear()
    yield fake
    for remembered in (sm90.parse, sm90._prepared):
        remembered.cache_clear()


@pytest.fixture(scope="session")
def cutlass() -> Path:
    """CUTLASS's headers; where they or nvcc are missing, a skip that says so."""
    package = importlib.util.find_spec("cutlass_library")
    found = [*ROOT.glob("build/*/cutlass-4.2")]
    if package is not None and package.submodule_search_locations:
        found.append(Path(package.submodule_search_locations[0]) / "source" / "include")
    if not found or shutil.which("nvcc") is None:
        pytest.skip("CUTLASS's headers or nvcc were not found: nothing was compared with CUTLASS's own layouts")
    return found[0]


@pytest.fixture(scope="session")
def compiled(cutlass: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The name of a source here that includes CUTLASS's layouts -> the program."""
    dry = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False)
    top = next(line.split("=", 1)[1] for line in dry.stderr.splitlines() if line.startswith("#$ TOP="))
    cuda = [*Path(top).glob("include"), *Path(top).glob("targets/*/include")]
    includes = [cutlass, *cuda, *(folder / "cccl" for folder in cuda)]
    flags = ["-std=c++17", "-O1", "-w", f"-I{ROOT / 'csrc'}", *(f"-isystem{folder}" for folder in includes)]

    def compile_one(source: str) -> Path:
        program = tmp_path_factory.mktemp("cutlass") / "layouts"
        compiler = shutil.which("c++") or "g++"
        subprocess.run([compiler, *flags, str(Path(__file__).with_name(source)), "-o", str(program)], check=True)
        return program

    return compile_one
