"""nm_linear at 2:4 through cuSPARSELt, by torch's own bindings: NVIDIA's library, the bar for every 2:4 kernel.

Packed order "cusparselt": the blob of `torch._cslt_compress`, which no document describes and no file should hold; it
is read back by multiplying it with the identity, exact but for a NaN's payload, so a weight with NaN is refused. torch
builds the library's descriptors anew in every call: replay a CUDA graph where that counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour.formats.nm import NMMatrix
from ajour.ops.aligned import aligned
from ajour.ops.dense import apply_activation
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel
from ajour.terms.pattern import NM, Pattern
from ajour.terms.problem import Problem
from ajour.terms.row_table import RowEntry

_SIDE = 16  # n and k must be multiples of it, for 16-bit floats
_ROWS = 8  # and so must the rows of x; they are padded
_MOST_ALGORITHMS = 64  # looked for where torch does not say how many there are; version 0.6.2 has 38
_UNPACKED = 4096  # columns of the weight that are read back at once
_CONFIG = re.compile(r"a(\d+)")


def _why_not(problem: Problem) -> str | None:
    if problem.device != "cuda":
        return f"cuSPARSELt runs on CUDA, this layer is on {problem.device}"
    if not torch.backends.cusparselt.is_available():
        return "this torch was built without cuSPARSELt"
    if problem.pattern != NM(2, 4):
        return f"cuSPARSELt takes 2:4, this pattern is {problem.pattern}"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"it takes bfloat16 and float16 here, this layer is {problem.dtype}"
    if problem.n % _SIDE or problem.k % _SIDE:
        return f"cuSPARSELt needs sides that are multiples of {_SIDE}, this weight is {problem.n}x{problem.k}"
    if problem.capability is not None and problem.capability < (8, 0):
        return f"cuSPARSELt needs compute capability 8.0, this device has {'.'.join(map(str, problem.capability))}"
    return None


def _configs(problem: Problem) -> tuple[str, ...]:
    """ "a3": algorithm 3. Some are wrong on some cards; the planner checks each before its time counts."""
    last = torch.backends.cusparselt.get_max_alg_id()
    return tuple(f"a{number}" for number in range(_algorithms() if last is None else last + 1))


@cache
def _algorithms() -> int:
    """How many there are, where torch knows no number for its version of the library: the first that fails is none."""
    if not torch.cuda.is_available():
        return 1
    w = torch.tensor([1, 0, 1, 0] * 32, dtype=torch.bfloat16, device="cuda").repeat(64, 1)
    x, blob = w[:_ROWS].clone(), torch._cslt_compress(w)
    for number in range(_MOST_ALGORITHMS):
        try:
            _multiply(x, blob, None, number)
        except RuntimeError:
            return max(1, number)
    return _MOST_ALGORITHMS


@cache
def _algorithm(config: str) -> int:
    found = _CONFIG.fullmatch(config or "a0")
    if found is None:
        raise KernelError(f"{config!r} is no cuSPARSELt configuration; expected something like 'a0'")
    return int(found[1])


def _check(problem: Problem, config: str) -> None:
    _algorithm(config)


def _multiply(x: Tensor, blob: Tensor, bias: Tensor | None, algorithm: int) -> Tensor:
    """y: [m, n], contiguous; the weight is the library's left operand."""
    m = x.shape[0]
    x = pad(x, (0, 0, 0, -m % _ROWS)) if m % _ROWS else aligned(x.contiguous())
    bias = None if bias is None else aligned(bias)
    y: Tensor = torch._cslt_sparse_mm(blob, x.t(), bias=bias, transpose_result=True, alg_id=algorithm)
    return y[:m]


def _prepack(matrix: NMMatrix, config: str) -> list[Tensor]:
    w = matrix.to_dense()
    if w.isnan().any():
        raise KernelError("cuSPARSELt can't give a NaN back bit for bit; use another kernel for this weight")
    return [torch._cslt_compress(w)]


def _unpack(packed: Sequence[Tensor], pattern: Pattern, shape: tuple[int, int]) -> NMMatrix:
    blob, (n, k) = packed[0], shape
    w = blob.new_empty(n, k)
    for first in range(0, k, _UNPACKED):
        columns = min(_UNPACKED, k - first)
        unit = torch.zeros(columns, k, dtype=blob.dtype, device=blob.device)
        unit[torch.arange(columns), torch.arange(first, first + columns)] = 1
        w[:, first : first + columns] = _multiply(unit, blob, None, 0).t()
    return NMMatrix.from_dense(w, pattern)


def _run(
    x: Tensor, packed: Sequence[Tensor], bias: Tensor | None, residual: Tensor | None, activation: str, entry: RowEntry
) -> Tensor:
    with torch.cuda.device_of(x):
        y = apply_activation(_multiply(x, packed[0], bias, _algorithm(entry.config)), activation)
    return y if residual is None else y + residual


KERNEL = Kernel(
    name="cusparselt",
    packing="cusparselt",
    why_not=_why_not,
    prepack=_prepack,
    unpack=_unpack,
    run=_run,
    configs=_configs,
    check=_check,
)
