"""The table that the compiled kernels and Triton's read: UpdateRow of layout/update_table.h, from torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.ops.masked_update.update import CHUNK, Slice

WORDS = 11
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of cpu/masked_update.h


def rows(slices: Sequence[Slice], grads: Sequence[Tensor]) -> Tensor:
    """int64 [slices, 11] on the CPU, with one of grads for each slice; the tensors must outlive it."""
    table: list[int] = []
    chunk = 0
    for piece, grad in zip(slices, grads, strict=True):
        states = [state.data_ptr() for state in piece.states]
        table += [piece.weight.data_ptr(), grad.data_ptr(), _address(piece.bits), _address(piece.offsets)]
        table += [_address(piece.master), *states, *[0] * (3 - len(states))]
        table += [piece.weight.numel(), piece.seed, chunk]
        chunk += chunks(piece)
    return torch.tensor(table, dtype=torch.int64, device="cpu").view(-1, WORDS)


def chunks(piece: Slice) -> int:
    """How many pieces of work a parameter is."""
    return -(-piece.weight.numel() // CHUNK)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
