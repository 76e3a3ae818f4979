"""Device code as programs for the CPU: the sources of tests/emulator, with instructions after PTX's tables."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "emulator"
FLAGS = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
PARALLEL = ("memory/parallel.cpp", "torch_abi/functions.cpp")  # for packing on the host


def build(
    folder: Path,
    sources: Sequence[str],
    host: Sequence[str],
    csrc: Path = ROOT / "csrc",
    flags: Sequence[str] = FLAGS,
) -> Path:
    """The program of these sources of tests/emulator, whose first one names it, and of these of csrc."""
    program, compiler = folder / Path(sources[0]).stem, shutil.which("c++") or "g++"
    files = [*(EMULATOR / name for name in sources), *(csrc / name for name in host)]
    includes = [f"-I{EMULATOR}", f"-I{csrc}"]
    subprocess.run(
        [compiler, "-std=c++17", *includes, *map(str, files), *flags, "-ldl", "-o", str(program)], check=True
    )
    return program


def run(
    program: Path,
    folder: Path,
    numbers: Sequence[int],
    tensors: Sequence[Tensor],
    y: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, str]:
    """y of that shape and dtype, and what the program said of a problem: numbers of 64 bits, then tensors' memory."""
    problem, result = folder / "problem", folder / "result"
    problem.write_bytes(struct.pack(f"{len(numbers)}q", *numbers) + b"".join(map(_raw, tensors)))
    done = subprocess.run([program, problem, result], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.frombuffer(bytearray(result.read_bytes()), dtype=torch.int16).view(dtype).view(y), done.stdout


def flat(x: Tensor) -> Tensor:
    """The memory of x: [m, k] from its first element to its last, with what lies between its rows."""
    m, k = x.shape
    return torch.as_strided(x, ((m - 1) * x.stride(0) + k,), (1,))


def _raw(t: Tensor) -> bytes:
    return t.contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b""
