"""Runs cuda_sm80's own device code on the CPU: tests/emulator, with instructions after PTX's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ajour.formats import NMMatrix
from ajour.ops.nm_linear import sm80_kernel
from ajour.terms.problem import ACTIVATIONS
from emulation import FLAGS, PARALLEL, ROOT, flat, run
from emulation import build as build_program

LAYOUTS = ("layout/sm80_shape.cpp", "layout/nm_slabs.cpp", *PARALLEL)


@dataclass(frozen=True)
class Launch:
    """The device that is emulated, and how the kernel is laid over it."""

    config: str = "n128 m64 s3"
    processors: int = 2
    shared: int = 160 << 10
    seed: int = 0
    y_offset: int = 0  # elements by which y is off a multiple of 16 bytes
    launches: int = 1  # one after the other with the same counters, which must all give the same bits


def build(folder: Path, csrc: Path = ROOT / "csrc", flags: Sequence[str] = FLAGS) -> Path:
    """Compiles the emulator with the kernel's headers."""
    return build_program(folder, ("sm80.cpp", "block.cpp"), LAYOUTS, csrc, flags)


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
        int(residual is not None), launch.y_offset, launch.launches,
    )  # fmt: skip
    tensors = [slabs, flat(x), *(t for t in (bias, residual) if t is not None)]
    return run(program, folder, values, tensors, (m, n), x.dtype)
