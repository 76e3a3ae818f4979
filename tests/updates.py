"""Updates over random parameters, for tests of the kernels of masked_adamw and masked_sgd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ajour.ops.masked_update.update import STATES, Slice, Update, chunk_offsets
from ajour.train import Mask

# more than one chunk of 4096, no multiples of anything, smaller than a vector, and exactly one chunk
SIZES = (6001, 7, 4096, 1, 130)
COEFFICIENTS = {
    "adamw": (1.0, 0.99, 0.1, 0.95, 0.05, 2.3, 1e-8, 3e-2, 3.0),
    "amsgrad": (-1.0, 1.0, 0.2, 0.9, 0.1, 1.7, 1e-6, 1e-2, 5.0),
    "sgd": (-1.0, 0.1, 0.0, 1.0, 0.0, 0.0, 0.0, 3e-2, 1.0),
    "momentum": (1.0, 0.02, 0.9, 0.7, 0.0, 0.0, 0.0, 1e-1, 2.0),
    "nesterov": (1.0, 0.02, 0.9, 1.0, 1.0, 0.0, 0.0, 1e-1, 2.0),
}
CASES = tuple(COEFFICIENTS)


def update(
    case: str, dtype: torch.dtype = torch.float32, *, compact: bool = False, master: bool = False,
    density: float | None = 0.3, sizes: Sequence[int] = SIZES, stochastic: bool = False, holes: bool = True,
) -> Update:  # fmt: skip
    """density None: without masks. What the masks don't keep holds NaN in the gradients and 7 in the weights; with
    `holes` long stretches are kept not at all, or in whole."""
    rule = "momentum" if case == "nesterov" else case
    slices, grads = [], []
    for place, size in enumerate(sizes):
        kept = torch.rand(size) < (1.0 if density is None else density)
        if holes and density is not None:
            kept[200:900] = False
            kept[5000:5200] = True
        bits = None if density is None else Mask.from_dense(kept).bits
        compactly = compact and bits is not None
        length = int(kept.sum()) if compactly else size

        def state(length: int = length, kept: Tensor = kept, compactly: bool = compactly) -> Tensor:
            values = torch.rand(length)
            return values if compactly else torch.where(kept, values, 0.0)

        w = torch.where(kept, torch.randn(size), 7.0).to(dtype)
        g = torch.where(kept, torch.randn(size), torch.nan).to(dtype)
        original = (w[kept] if compactly else torch.where(kept, w, 0.0)).float() * 1.001 if master else None
        states = tuple(state() for _ in STATES[rule])
        slices.append(Slice(w, bits, None if not compactly else chunk_offsets(bits), states, original, 77 * place + 5))
        grads.append(g)
    row = torch.tensor(COEFFICIENTS[case], dtype=torch.float64)
    rows = row.repeat(len(sizes), 1)
    rows[:, 7] *= torch.linspace(1, 2, len(sizes))  # each has its own learning rate
    return Update(rule, slices, grads, rows, stochastic)


def copied(given: Update) -> Update:
    """The same update on tensors of its own."""
    slices = [
        replace(
            piece,
            weight=piece.weight.clone(),
            states=tuple(state.clone() for state in piece.states),
            master=None if piece.master is None else piece.master.clone(),
        )
        for piece in given.slices
    ]
    return replace(given, slices=slices, grads=[grad.clone() for grad in given.grads])


def assert_alike(found: Update, wanted: Update, grads: Update) -> None:
    """float32 within a few roundings; 16-bit weights the same but where a rounding went the other way; gradients and
    what the masks don't keep bit for bit."""
    for mine, given in zip(found.grads, grads.grads, strict=True):
        assert torch.equal(mine.view(torch.uint8), given.view(torch.uint8))
    for mine, theirs in zip(found.slices, wanted.slices, strict=True):
        pairs = [*zip(mine.states, theirs.states, strict=True)]
        if mine.master is not None:
            pairs.append((mine.master, theirs.master))
        if mine.weight.dtype == torch.float32:
            pairs.append((mine.weight, theirs.weight))
        else:
            assert ((mine.weight != theirs.weight).sum() <= 0.01 * len(mine.weight) + 1).all()
            torch.testing.assert_close(mine.weight, theirs.weight, rtol=2.0**-7, atol=3e-7)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-7)
        if mine.bits is not None:
            dropped = ~Mask(mine.bits, mine.weight.shape).dense()
            assert not mine.weight[dropped].view(torch.uint8).any(), "exactly +0.0"
            if mine.offsets is None:
                assert all(not state[dropped].any() for state in mine.states)
