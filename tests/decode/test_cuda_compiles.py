"""The CUDA kernels compile for sm_80 and sm_90a, keep everything in registers, and use what they are built around.

Needs nvcc, not a GPU; where there is none this is said aloud, as a skip of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ("nm_decode", "placed_decode", "bitmap_decode")
ARCHITECTURES = ("sm_80", "sm_90a")
TRITON_TOOLS = Path("backends") / "nvidia" / "bin"


def tool(name: str) -> str:
    """nvcc, or a disassembler of the CUDA toolkit or of Triton's package."""
    if found := shutil.which(name):
        return found
    if name != "nvcc":
        triton = pytest.importorskip("triton", reason=f"neither {name} nor Triton, which brings it, is installed")
        bundled = Path(triton.__file__).parent / TRITON_TOOLS / name
        if bundled.is_file():
            return str(bundled)
    pytest.skip(f"no {name} here: the CUDA kernels were not compiled, nor their registers and instructions looked at")


@pytest.fixture(scope="module", params=[(unit, arch) for unit in UNITS for arch in ARCHITECTURES], ids="-".join)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str, Path]:
    """Unit, architecture, what ptxas said of every kernel, and the machine code."""
    unit, arch = request.param
    cubin = tmp_path_factory.mktemp("cubins") / f"{unit}.{arch}.cubin"
    command = [tool("nvcc"), "-std=c++17", f"-I{ROOT / 'csrc'}", "-O3", f"-arch={arch}", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "-o", cubin, ROOT / "csrc" / "cuda" / f"{unit}.cu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return unit, arch, done.stderr, cubin


def test_no_kernel_spills_and_the_right_instructions_are_used(compiled: tuple[str, str, str, Path]) -> None:
    unit, arch, said, cubin = compiled
    kernels = re.findall(r"Compiling entry function '(\w+)'", said)
    assert len(kernels) == {"nm_decode": 8, "placed_decode": 32, "bitmap_decode": 8}[unit]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(spills) >= len(kernels), f"ptxas says {said!r}"
    assert not [pair for pair in spills if pair != ("0", "0")], said
    sass = subprocess.run([tool("cuobjdump"), "-sass", cubin], capture_output=True, text=True, check=True).stdout
    opcodes = set(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9.]+)", sass, re.MULTILINE))
    sparse = {opcode for opcode in opcodes if opcode.startswith("HMMA.SP")}
    dense = {opcode for opcode in opcodes if opcode.startswith("HMMA.16816")}
    assert bool(sparse) == (unit == "nm_decode"), f"mma.sp in {unit}: {sorted(sparse)}"
    assert bool(dense) == (unit != "nm_decode")
    bulk = {opcode for opcode in opcodes if opcode.startswith("UBLKCP")}
    assert bool(bulk) == (arch == "sm_90a"), f"bulk copies on {arch}: {sorted(bulk)}"
    assert any(opcode.startswith("LDGSTS") for opcode in opcodes), "x is copied asynchronously"
    assert not any(opcode.startswith(("LDL", "STL")) for opcode in opcodes), "local memory"
