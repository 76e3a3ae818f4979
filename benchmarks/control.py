"""The packed dense control: what packing alone brings, so that a decode figure can tell sparsity's part of it.

On a CPU it stands beside dense (`control_us`); on a GPU it is one of the dense kernels too, of which the best counts: a
sparse kernel that beats no more than a library on few rows proves nothing. No plan chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour import huge_pages
from ajour._native import HAS_CUDA, native
from ajour.memory import lent
from ajour.ops import decode
from ajour.planning.correctness import Oracle
from ajour.planning.timing import Side
from ajour.terms.pattern import Dense
from ajour.terms.row_table import RowEntry

PANEL = 16  # rows of a panel on a CPU
MOST_ROWS = 8  # on a CPU: beyond, weights are read from the cache more often than from memory, and packing tells little
SLAB = 64  # rows and columns of a slab on a GPU
CONFIGS = ("c2 s4", "c1 s8")  # on a GPU; a dense slab is so large that the others come down to fewer stages of these


@dataclass(frozen=True)
class Control:
    """Copies of a weight, packed; empty where the control does not apply.

    kernels: name -> (x: [m, k], packed) -> y: [m, n]; most_rows: of x; counts: whether it is one of the dense kernels
    that a sparse one must beat.
    """

    packed: Sequence[Tensor] = ()
    kernels: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = ()
    most_rows: int = 0
    counts: bool = False
    known: dict[int, list[float]] = field(default_factory=dict)  # by rows of x: error_ratios

    def error_ratios(self, x: Tensor, w: Tensor) -> list[float]:
        """Of each side, for w as it was packed; told once for a number of rows, as float64 takes longer than timing."""
        m = x.shape[0]
        if m not in self.known:
            oracle = Oracle.of(x, w, None)
            self.known[m] = [oracle.error_ratio(kernel(x, self.packed[0])) for _, kernel in self.kernels]
        return self.known[m]

    def sides(self, x: Tensor) -> list[Side]:
        """The control as sides for a few rows x: [m, k], else nothing."""
        if not self.packed or x.shape[0] > self.most_rows:
            return []
        return [Side(name, [partial(multiply, x, each) for each in self.packed]) for name, multiply in self.kernels]


def control_of(weights: Sequence[Tensor]) -> Control:
    """The control of copies of one weight [n, k]."""
    first = weights[0]
    n, k = first.shape
    if first.is_cuda and HAS_CUDA and first.dtype in (torch.bfloat16, torch.float16):
        entry = RowEntry("packed dense", 0, 1, "", None, n, k, str(first.dtype).removeprefix("torch."), Dense())
        kernels = tuple((f"packed dense {config}", partial(by_slabs, entry, config)) for config in CONFIGS)
        return Control([slabs(w) for w in weights], kernels, decode.MOST_ROWS, counts=True)
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.bfloat16) or n % PANEL or k % 2:
        return Control()
    return Control([panels(w) for w in weights], (("packed dense", by_panels),), MOST_ROWS)


def panels(w: Tensor) -> Tensor:
    """[n / 16, k, 16] for float32, [n / 16, k / 2, 16, 2] for bfloat16, as csrc/cpu/dense_panels.h reads them."""
    n, k = w.shape
    if w.dtype == torch.float32:
        return _held(w.view(n // PANEL, PANEL, k).transpose(1, 2))
    return _held(w.view(n // PANEL, PANEL, k // 2, 2).permute(0, 2, 1, 3))


def _held(w: Tensor) -> Tensor:
    """A contiguous copy where the sparse kernels' packed weights lie, so that pages make no difference."""
    return huge_pages.empty(w.numel(), w.dtype).view(w.shape).copy_(w)


def by_panels(x: Tensor, packed: Tensor) -> Tensor:
    """x @ w.T: [m, n], on a CPU."""
    m, k = x.shape
    y = x.new_empty(m, packed.shape[0] * PANEL)
    native._dense_panels(packed.data_ptr(), x.data_ptr(), y.data_ptr(), m, y.shape[1], k, x.dtype == torch.bfloat16)
    return y


def slabs(w: Tensor) -> Tensor:
    """w: [n, k] of 16 bits in the order of csrc/layout/dense_slabs.h, where it lies."""
    n, k = w.shape
    down, across = -(-n // SLAB), -(-k // SLAB)
    whole = pad(w, (0, across * SLAB - k, 0, down * SLAB - n))
    # panel, fragment, its halves, g, slab, step, its halves, c, two columns
    parts = whole.view(down, 4, 2, 8, across, 4, 2, 4, 2)
    return pad(parts.permute(0, 4, 5, 1, 3, 7, 6, 2, 8).reshape(-1), (0, SLAB * SLAB))


def by_slabs(entry: RowEntry, config: str, x: Tensor, packed: Tensor) -> Tensor:
    """x @ w.T: [m, n], on a GPU."""
    n, k = entry.n, entry.k
    shape = decode.shape_of(x.shape[0], n, k, SLAB, native._DENSE_SLAB_BYTES, config, x.get_device())
    head, room = (n, k, lent(packed), shape), shape.scratch_bytes // 2
    return decode.launch(native._dense_decode, head, room, x, None, None, "none", entry)
