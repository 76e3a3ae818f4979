"""What else a user could run here today: torch's own sparse tensors, timed and checked beside our kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from ajour.terms.errors import AjourError
from ajour.terms.pattern import NM, Block, Pattern, Unstructured


def _failures() -> tuple[type[Exception], ...]:
    """What torch's sparse code and Triton have been seen to raise where they do not work."""
    known = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ZeroDivisionError, AjourError)
    if find_spec("triton") is None:
        return known
    from triton.errors import TritonError  # no RuntimeError: a tile that needs more memory than the card has

    return (*known, TritonError)


FAILURES = _failures()
SEMI_ROWS = 16  # cuSPARSELt takes numbers of rows that are multiples of this


@dataclass(frozen=True)
class Peer:
    """One way to run a pruned weight without ajour.

    meant_for: whether it is for zeros of this kind on this kind of device. pack: w [n, k] and its pattern -> the held
    form. ready: (x: [m, k], held) -> what may be prepared for this x outside the clock. run: (x, held, prepared) -> y.
    """

    name: str
    meant_for: Callable[[Pattern, str], bool]
    pack: Callable[[Tensor, Pattern], Tensor]
    run: Callable[[Tensor, Tensor, Any], Tensor]
    ready: Callable[[Tensor, Tensor], Any] = lambda x, held: None


def peers_for(pattern: Pattern, device: str) -> list[Peer]:
    """Those that are meant for the pattern on this kind of device, whether or not they work."""
    return [peer for peer in PEERS if peer.meant_for(pattern, device)]


def held_bytes(held: Tensor) -> int:
    """Bytes of what a peer holds."""
    if held.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (held.values(), held.crow_indices(), held.col_indices())
    elif type(held) is not Tensor:  # torch's semi-structured subclass: half the values, and a bit for each element
        return held.numel() * held.element_size() * 9 // 16
    else:
        parts = (held,)
    return sum(part.numel() * part.element_size() for part in parts)


def _csr(w: Tensor, pattern: Pattern) -> Tensor:
    return w.to_sparse_csr()


def _bsr(w: Tensor, pattern: Pattern) -> Tensor:
    assert isinstance(pattern, Block)
    return w.to_sparse_bsr((pattern.rows, pattern.cols))


def _linear(x: Tensor, held: Tensor, prepared: Any) -> Tensor:
    return linear(x, held)


def _times_transposed(x: Tensor, held: Tensor, transposed: Tensor) -> Tensor:
    return (held @ transposed).t()


def _transposed(x: Tensor, held: Tensor) -> Tensor:
    return x.t().contiguous()


def _semi_structured(w: Tensor, pattern: Pattern) -> Tensor:
    held: Tensor = torch.sparse.to_sparse_semi_structured(w)
    return held


def _compressed(w: Tensor, pattern: Pattern) -> Tensor:
    return torch._cslt_compress(w)


def _searched(x: Tensor, held: Tensor) -> int:
    """The algorithm that cuSPARSELt's own search finds fastest for this x."""
    return int(torch._cslt_sparse_mm_search(held, _padded(x).t(), transpose_result=True))


def _padded(x: Tensor) -> Tensor:
    missing = -x.shape[0] % SEMI_ROWS
    return pad(x, (0, 0, 0, missing)) if missing else x


def _cslt(x: Tensor, held: Tensor, algorithm: int) -> Tensor:
    return torch._cslt_sparse_mm(held, _padded(x).t(), transpose_result=True, alg_id=algorithm)[: x.shape[0]]


def _bsr_triton(x: Tensor, held: Tensor, prepared: Any) -> Tensor:
    from torch.sparse._triton_ops import bsr_dense_addmm

    y = x.new_empty(held.shape[0], x.shape[0])
    return bsr_dense_addmm(y, held, x.t(), beta=0).t()


def _two_of_four(pattern: Pattern, device: str) -> bool:
    return pattern == NM(2, 4) and device == "cuda"


PEERS = (
    Peer("torch csr", lambda p, d: isinstance(p, Unstructured) and d == "cpu", _csr, _linear),
    Peer(
        "torch csr, x transposed", lambda p, d: isinstance(p, Unstructured) and d == "cpu", _csr, _times_transposed,
        _transposed,
    ),
    Peer("torch bsr", lambda p, d: isinstance(p, Block) and d == "cpu", _bsr, _linear),
    Peer(
        "torch bsr, x transposed", lambda p, d: isinstance(p, Block) and d == "cpu", _bsr, _times_transposed,
        _transposed,
    ),
    Peer("torch bsr triton", lambda p, d: isinstance(p, Block) and d == "cuda", _bsr, _bsr_triton),
    Peer("torch semi-structured", _two_of_four, _semi_structured, _linear),
    Peer("cuSPARSELt, searched", _two_of_four, _compressed, _cslt, _searched),
)  # fmt: skip
