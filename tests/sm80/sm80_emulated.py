"""Runs cuda_sm80's own device code on the CPU: tests/emulator, with instructions after PTX's tables."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ajour.formats import NMMatrix
from ajour.ops.nm_linear import sm80_kernel
from ajour.terms.problem import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Launch:
    """The device that is emulated, and how the kernel is laid over it."""

    config: str = "n128 m64 s3"
    processors: int = 2
    shared: int = 160 << 10
    seed: int = 0
    y_offset: int = 0  # elements by which y is off a multiple of 16 bytes


def build(folder: Path, csrc: Path = ROOT / "csrc", flags: Sequence[str] = FLAGS) -> Path:
    """Compiles the emulator with the kernel's headers."""
    compiler, program, emulator = shutil.which("c++") or "g++", folder / "sm80", ROOT / "tests" / "emulator"
    sources = [emulator / "sm80.cpp", emulator / "block.cpp"]
    sources += [
        csrc / name
        for name in ("layout/sm80_shape.cpp", "layout/nm_slabs.cpp", "memory/parallel.cpp", "torch_abi/functions.cpp")
    ]
    includes = [f"-I{emulator}", f"-I{csrc}"]
    command = [compiler, "-std=c++17", *includes, *map(str, sources), *flags, "-ldl", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def multiply(
    program: Path,
    folder: Path,
    matrix: NMMatrix,
    x: Tensor,
    launch: Launch,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> tuple[Tensor, str]:
    """y: [m, n] = activation(x: [m, k] @ matrix.T + bias) + residual as emulated, and what the emulator said."""
    (n, k), m, x = matrix.shape, x.shape[0], sm80_kernel.aligned(x)
    (slabs,) = sm80_kernel.KERNEL.prepack(matrix, "")
    config = sm80_kernel.parse_config(launch.config)
    values = (
        m, n, k, int(x.dtype == torch.bfloat16), ACTIVATIONS.index(activation), *config.tile, config.stages,
        config.blocks, launch.processors, launch.shared, launch.seed, x.stride(0), slabs.nbytes, int(bias is not None),
        int(residual is not None), launch.y_offset,
    )  # fmt: skip
    strided = torch.as_strided(x, ((m - 1) * x.stride(0) + k,), (1,))
    tensors = [slabs, strided, *(t for t in (bias, residual) if t is not None)]
    problem, result = folder / "problem", folder / "result"
    raw = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
    problem.write_bytes(struct.pack(f"{len(values)}q", *values) + raw)
    done = subprocess.run([program, problem, result], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.frombuffer(bytearray(result.read_bytes()), dtype=torch.int16).view(x.dtype).view(m, n), done.stdout
