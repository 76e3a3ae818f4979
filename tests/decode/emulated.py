"""Runs the decode kernels' own device code on the CPU: tests/emulator, with instructions after PTX's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.control import slabs as dense_slabs
from torch import Tensor

from ajour._native import native
from ajour.formats import BitmapMatrix, NMMatrix
from ajour.ops.bitmap_linear import decode_kernel as bitmap_kernel
from ajour.ops.bitmap_linear import gap_kernel
from ajour.ops.nm_linear import decode_kernel as nm_kernel
from ajour.ops.nm_linear import slabs
from ajour.terms.pattern import NM
from ajour.terms.problem import ACTIVATIONS
from emulation import FLAGS, PARALLEL, ROOT, flat, run
from emulation import build as build_program

LAYOUTS = ("layout/decode_shape.cpp", "layout/bitmap.cpp", "layout/gap_rows.cpp", "layout/nm_slabs.cpp", *PARALLEL)
KINDS = ("nm", "bitmap", "lanes", "gaps", "dense")  # as in tests/emulator/decode.cpp


@dataclass(frozen=True)
class Launch:
    """The device that is emulated, and how a kernel is laid over it. bulk: copies as on sm_90, else as on sm_80;
    launches: one after the other with the same counters, which must all give the same bits.
    """

    bulk: bool = True
    processors: int = 2
    shared: int = 200 << 10
    blocks: int = 1
    stages: int = 3
    seed: int = 0
    x_offset: int = 0  # elements by which x is off a multiple of 16 bytes
    launches: int = 1


def build(folder: Path, csrc: Path = ROOT / "csrc", flags: Sequence[str] = FLAGS) -> Path:
    """Compiles the emulator with the kernels' headers."""
    return build_program(folder, ("decode.cpp", "block.cpp"), LAYOUTS, csrc, flags)


def decode(
    program: Path,
    folder: Path,
    matrix: NMMatrix | BitmapMatrix | Tensor,
    x: Tensor,
    launch: Launch,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    kernel: str = "",
) -> tuple[Tensor, str]:
    """y: [m, n] = activation(x: [m, k] @ matrix.T + bias) + residual as emulated, and what the emulator said.

    kernel: "lanes" (2:4 without tensor cores), "gaps" (of a bitmap), or the one on tensor cores; a dense matrix has the
    control alone.
    """
    (n, k), m = matrix.shape, x.shape[0]
    if isinstance(matrix, Tensor):
        kind, pattern, packed = KINDS.index("dense"), NM(1, 4), [dense_slabs(matrix)]
    else:
        kind = KINDS.index(kernel) if kernel else int(isinstance(matrix, BitmapMatrix))
        packed = (nm_kernel, bitmap_kernel, nm_kernel, gap_kernel)[kind].KERNEL.prepack(matrix, "")
        pattern = matrix.pattern if isinstance(matrix.pattern, NM) else NM(1, 4)
    none = torch.empty(0, dtype=torch.int32)
    index, order = packed[1] if len(packed) > 1 else none, packed[2] if kernel == "gaps" else none
    slab_bytes = native._DENSE_SLAB_BYTES if KINDS[kind] == "dense" else slabs.layout_of(pattern, n, k).slab_bytes
    room = packed[2].numel() if len(packed) > 2 else slab_bytes
    values = (
        kind, m, n, k, pattern.keep, pattern.group, int(x.dtype == torch.bfloat16),
        ACTIVATIONS.index(activation), int(launch.bulk), launch.processors, launch.shared, launch.blocks, launch.stages,
        launch.seed, x.stride(0), packed[0].nbytes, index.numel(), room, int(bias is not None),
        int(residual is not None), launch.x_offset, order.numel(), launch.launches,
    )  # fmt: skip
    tensors = [packed[0], index, order, flat(x), *(t for t in (bias, residual) if t is not None)]
    return run(program, folder, values, tensors, (m, n), x.dtype)
