"""What the decode kernels of all ops share: which problems they take, how they are laid over a device, and one call."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from ajour._native import HAS_CUDA, native
from ajour.memory import stream_of
from ajour.terms.errors import KernelError
from ajour.terms.problem import ACTIVATION_CODES, Problem
from ajour.terms.row_table import RowEntry

MOST_ROWS: int = native.DECODE_ROWS
_CONFIG = re.compile(r"c(\d+) s(\d+)")
_DEFAULT = "c2 s4"
# bytes of shared memory that a block may use, by compute capability
_BLOCK_SHARED = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
_LEAST_SHARED = 99 << 10


def why_not(problem: Problem) -> str | None:
    """None if the problem is one for decoding on this build and this device, else the reason."""
    if problem.device != "cuda":
        return f"it runs on CUDA, this layer is on {problem.device}"
    if not HAS_CUDA:
        return "ajour was built without CUDA; build it where nvcc is found, with AJOUR_CUDA=ON"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"it takes bfloat16 and float16, this layer is {problem.dtype}"
    if not (problem.n and problem.k):
        return f"it multiplies weights, this one is empty: {problem.n}x{problem.k}"
    if problem.m > MOST_ROWS:
        return f"it is for 1 to {MOST_ROWS} rows, these are {problem.m} rows"
    if problem.capability is not None and problem.capability < (8, 0):
        found = ".".join(map(str, problem.capability))
        return f"it needs compute capability 8.0, this device has {found}"
    return None


def configs(problem: Problem) -> tuple[str, ...]:
    """ "c2 s4": two blocks on a multiprocessor, at most four stages in flight; the likely best one first."""
    return (_DEFAULT, "c1 s8", "c1 s4", "c3 s3", "c2 s3")


@cache
def parse_config(config: str) -> tuple[int, int]:
    """Blocks on a multiprocessor, stages; the empty string is the default. Raises KernelError."""
    found = _CONFIG.fullmatch(config or _DEFAULT)
    if found is None:
        raise KernelError(f"{config!r} is no decode configuration; expected something like {_DEFAULT!r}")
    return int(found[1]), int(found[2])


def why_no_room(problem: Problem, columns: int, room: int) -> str | None:
    """None if two slabs for each warp fit this device's shared memory, else the reason."""
    shared = _BLOCK_SHARED.get(problem.capability or (9, 0), _LEAST_SHARED)
    limits = native.DeviceLimits(1, shared, shared + 1024)
    try:
        native.DecodeShape(problem.m, problem.n, problem.k, columns, room, limits, 1, 2)
    except KernelError as error:
        return str(error)
    return None


@cache
def limits_of(device: int) -> Any:
    """The DeviceLimits of a CUDA device, asked once."""
    return native.device_limits(device)


@cache
def shape_of(m: int, n: int, k: int, columns: int, room: int, config: str, device: int) -> Any:
    """The DecodeShape for m rows, remembered: the same in every call of a layer."""
    return native.DecodeShape(m, n, k, columns, room, limits_of(device), *parse_config(config))


def in_pieces(
    run: Callable[..., Tensor],
    x: Tensor,
    packed: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    entry: RowEntry,
    most: int = MOST_ROWS,
) -> Tensor:
    """More rows than a tile holds, a tile after the other: right, but it reads the weight for each of them."""
    y = x.new_empty(x.shape[0], entry.n)
    for first in range(0, x.shape[0], most):
        rows = slice(first, first + most)
        y[rows] = run(x[rows], packed, bias, None if residual is None else residual[rows], activation, entry)
    return y


def launch(
    product: Callable[..., None],
    head: tuple[Any, ...],
    room: int,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    entry: RowEntry,
) -> Tensor:
    """One call of a compiled product, y: [m, n]: `head` is what it takes before x, `room` its scratch in 16-bit words.

    Nothing here waits for the device, and this memory is torch's, so that a graph can hold the call.
    """
    stride, within_row = x.stride()
    if within_row != 1:
        x = x.contiguous()
        stride = entry.k
    m, device = x.shape[0], x.get_device()
    y = x.new_empty(m, entry.n)
    scratch = x.new_empty(room) if room else None
    product(
        *head,
        x.data_ptr(),
        stride,
        m,
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        y.data_ptr(),
        0 if scratch is None else scratch.data_ptr(),
        entry.dtype == "bfloat16",
        ACTIVATION_CODES[activation],
        device,
        stream_of(device),
    )
    return y
