"""What cuobjdump says of the compiled extension: it needs a build with CUDA, not a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from ajour._native import HAS_CUDA, native


@cache
def dumped(option: str) -> str:
    """The output of cuobjdump, of the CUDA toolkit or of Triton's package; without any CUDA a skip that says so."""
    if not HAS_CUDA and shutil.which("nvcc"):
        pytest.fail("nvcc is on the PATH, but ajour was built without CUDA: build it again, with AJOUR_CUDA=ON")
    if not HAS_CUDA:
        pytest.skip("ajour was built without CUDA: nothing was said of its kernels' registers and instructions")
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="neither cuobjdump nor Triton, which brings it, is installed")
        tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return subprocess.run([tool, option, native.__file__], capture_output=True, text=True, check=True).stdout


def kernels(option: str, named: str) -> dict[tuple[str, str], str]:
    """(architecture, name) -> what was said of each kernel whose name holds the pattern `named`."""
    found, arch = {}, ""
    for part in re.split(r"^(?=arch = |\s*Function)", dumped(option), flags=re.MULTILINE):
        if part.startswith("arch = "):
            arch = part.split()[2].rstrip("a")
        elif (name := re.match(r"\s*Function\s*:?\s*(\w+)", part)) and re.search(named, name[1]):
            found[arch, name[1]] = part
    return found


def opcodes(sass: str) -> list[str]:
    """The instructions of a kernel in their order."""
    return re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE)
