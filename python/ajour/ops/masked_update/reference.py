"""masked_adamw and masked_sgd in plain float64, one parameter after another: what the kernels are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from ajour.ops.masked_update.update import ADAMW, SGD, Slice, Update, UpdateKernel, flat_kept

_WORD = 0xFFFFFFFF


def run(update: Update) -> None:
    """Performs the update; any device, any floating dtype."""
    if update.found_inf is not None and bool(update.found_inf):
        return
    names = ADAMW if update.rule in ("adamw", "amsgrad") else SGD
    scale = 1.0 if update.grad_scale is None else float(update.grad_scale)
    for piece, grad, row in zip(update.slices, update.grads, update.coefficients.tolist(), strict=True):
        _step(update, piece, grad, dict(zip(names, row, strict=True)), scale)


def _step(update: Update, piece: Slice, grad: Tensor, c: dict[str, float], scale: float) -> None:
    kept = flat_kept(piece.bits, piece.weight.numel())
    compact = piece.offsets is not None

    def read(t: Tensor, stored_compact: bool) -> Tensor:
        return (t if kept is None or stored_compact else t[kept]).double()

    def write(t: Tensor, values: Tensor, stored_compact: bool) -> None:
        if kept is None or stored_compact:
            t.copy_(values)
        else:
            t.zero_()
            t[kept] = values.to(t.dtype)

    g = read(grad.view(-1), False) * (c["sign"] / scale)
    w = read(piece.master, compact) if piece.master is not None else read(piece.weight, False)
    states = [read(state, compact) for state in piece.states]
    w = _adamw(w, g, states, c) if update.rule in ("adamw", "amsgrad") else _sgd(w, g, states, c)
    for stored, state in zip(piece.states, states, strict=True):
        write(stored, state, compact)
    if piece.master is not None:
        write(piece.master, w, compact)
    if update.stochastic:
        places = torch.arange(piece.weight.numel(), device=w.device)
        places = places if kept is None else places[kept]
        w = round_at_random(w.float(), random_words(piece.seed, int(c["step"]), places))
    write(piece.weight, w, False)


def _adamw(w: Tensor, g: Tensor, states: list[Tensor], c: dict[str, float]) -> Tensor:
    """Decoupled weight decay (arXiv 1711.05101, algorithm 2), as torch.optim.AdamW has it."""
    states[0] = states[0] + (g - states[0]) * c["blend1"]
    states[1] = states[1] * c["beta2"] + g * g * c["blend2"]
    if len(states) == 3:
        states[2] = torch.maximum(states[2], states[1])
    return w * c["decay"] - c["rate"] * states[0] / (states[-1].sqrt() * c["correction2"] + c["eps"])


def _sgd(w: Tensor, g: Tensor, states: list[Tensor], c: dict[str, float]) -> Tensor:
    g = g + w * c["decay"]
    if states:
        states[0] = states[0] * c["momentum"] + g * c["gain"]
        g = g + states[0] * c["momentum"] if c["nesterov"] else states[0]
    return w - c["rate"] * g


def random_words(seed: int, step: int, places: Tensor) -> Tensor:
    """int64 in 0..2^32-1 for int64 `places`: scramble(place ^ rounding_key) of layout/update_table.h."""
    key = torch.full_like(places, (seed ^ (step * 0x9E3779B9)) & _WORD)
    key = _scramble((_scramble(key) + (places >> 32)) & _WORD)
    return _scramble((places & _WORD) ^ key)


def _scramble(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def round_at_random(values: Tensor, words: Tensor) -> Tensor:
    """float32 to bfloat16, up or down by the low 16 bits of `words`, so that the mean is the value; NaN, Inf stay."""
    bits = values.view(torch.int32).long() & _WORD
    rounded = ((bits + (words & 0xFFFF)) & 0xFFFF0000).to(torch.int64)
    signed = torch.where(rounded >= 1 << 31, rounded - (1 << 32), rounded).int()
    return torch.where(values.isfinite(), signed.view(torch.float32), values).bfloat16()


KERNEL = UpdateKernel("reference", lambda device, dtype: None, run)
