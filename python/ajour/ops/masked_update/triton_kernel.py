"""masked_adamw and masked_sgd in Triton: one program for each chunk of each parameter, found through a table."""

from __future__ import annotations

import torch
import triton.language as tl

import triton
from ajour.ops.masked_update.device_table import on_device
from ajour.ops.masked_update.update import CHUNK, STATES, Update
from ajour.ops.triton_tile import launch

BLOCK = 1024  # entries at a time
WARPS = 4
WORDS = 11  # of a row, as layout/update_table.h has them
COLUMNS = 9  # of coefficients
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def scramble(x):
    """uint32 -> uint32, as in layout/update_table.h."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def round_at_random(w, seed, step, i):
    """float32 to a float32 that is a bfloat16, up or down by the random word of entry i in this step."""
    key = scramble(seed.to(tl.uint32) ^ (step.to(tl.uint32) * 0x9E3779B9))
    key = scramble(key + (i >> 32).to(tl.uint32))
    words = scramble(i.to(tl.uint32) ^ key)
    bits = w.to(tl.uint32, bitcast=True)
    rounded = (bits + (words & 0xFFFF)) & 0xFFFF0000
    return tl.where((bits & 0x7F800000) == 0x7F800000, bits, rounded).to(tl.float32, bitcast=True)


@triton.jit
def sgd(w, g, c, momentum, kept, NUM_STATES: tl.constexpr):
    """The new weights; updates the momentum."""
    g += w * tl.load(c + 1)
    if NUM_STATES == 1:
        s = tl.load(momentum, mask=kept, other=0.0) * tl.load(c + 2) + g * tl.load(c + 3)
        tl.store(momentum, s, mask=kept)
        g = tl.where(tl.load(c + 4) != 0, g + s * tl.load(c + 2), s)
    return w - g * tl.load(c + 7)


@triton.jit
def adamw(w, g, c, first, second, largest, kept, NUM_STATES: tl.constexpr):
    """The new weights; updates the moments."""
    m = tl.load(first, mask=kept, other=0.0)
    v = tl.load(second, mask=kept, other=0.0)
    m += (g - m) * tl.load(c + 2)
    v = v * tl.load(c + 3) + g * g * tl.load(c + 4)
    tl.store(first, m, mask=kept)
    tl.store(second, v, mask=kept)
    if NUM_STATES == 3:
        v = tl.maximum(v, tl.load(largest, mask=kept, other=0.0), propagate_nan=tl.PropagateNan.ALL)
        tl.store(largest, v, mask=kept)
    return w * tl.load(c + 1) - tl.div_rn(m, tl.sqrt_rn(v) * tl.load(c + 5) + tl.load(c + 6)) * tl.load(c + 7)


@triton.jit
def masked_update(
    rows,
    chunk_rows,
    coefficients,
    grad_scale,
    found_inf,
    RULE: tl.constexpr,
    NUM_STATES: tl.constexpr,
    MASTER: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    TYPE: tl.constexpr,
    CHUNK_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    ROW_COLUMNS: tl.constexpr,
):
    """One chunk of one parameter; rows and coefficients as in layout/update_table.h."""
    which = tl.load(chunk_rows + tl.program_id(0)).to(tl.int64)
    row, c = rows + which * ROW_WORDS, coefficients + which * ROW_COLUMNS
    weight = tl.load(row).to(tl.pointer_type(TYPE))
    grad = tl.load(row + 1).to(tl.pointer_type(TYPE))
    bits_at, offsets_at = tl.load(row + 2), tl.load(row + 3)
    bits = bits_at.to(tl.pointer_type(tl.uint8))
    offsets = offsets_at.to(tl.pointer_type(tl.int64))
    master = tl.load(row + 4).to(tl.pointer_type(tl.float32))
    state0 = tl.load(row + 5).to(tl.pointer_type(tl.float32))
    state1 = tl.load(row + 6).to(tl.pointer_type(tl.float32))
    state2 = tl.load(row + 7).to(tl.pointer_type(tl.float32))
    numel, seed = tl.load(row + 8), tl.load(row + 9)
    if found_inf is not None:
        numel = tl.where(tl.load(found_inf) == 0.0, numel, 0)
    chunk = tl.program_id(0) - tl.load(row + 10)
    factor = tl.load(c)
    if grad_scale is not None:
        factor = factor / tl.load(grad_scale)
    compact = offsets_at != 0
    at = tl.load(offsets + chunk, mask=compact, other=0)
    for start in range(0, CHUNK_SIZE, BLOCK_SIZE):
        i = chunk * CHUNK_SIZE + start + tl.arange(0, BLOCK_SIZE).to(tl.int64)
        inside = i < numel
        byte = tl.load(bits + i // 8, mask=inside & (bits_at != 0), other=255)
        kept = inside & (((byte >> (i % 8).to(tl.uint8)) & 1) != 0)
        count = kept.to(tl.int32)
        place = tl.where(compact, at + tl.cumsum(count, 0) - count, i)
        at += tl.sum(count, 0)
        g = tl.load(grad + i, mask=kept, other=0.0).to(tl.float32) * factor
        if MASTER:
            w = tl.load(master + place, mask=kept, other=0.0)
        else:
            w = tl.load(weight + i, mask=kept, other=0.0).to(tl.float32)
        if RULE == "sgd" or RULE == "momentum":
            w = sgd(w, g, c, state0 + place, kept, NUM_STATES)
        else:
            w = adamw(w, g, c, state0 + place, state1 + place, state2 + place, kept, NUM_STATES)
        if MASTER:
            tl.store(master + place, w, mask=kept)
        if STOCHASTIC:
            w = round_at_random(w, seed, tl.load(c + 8), i)
        tl.store(weight + i, tl.where(kept, w, 0.0).to(TYPE), mask=inside)


def run(update: Update) -> None:
    """Performs the update in place, on the device's current stream."""
    table, chunk_rows, coefficients = on_device(update)
    launch(
        masked_update, len(chunk_rows), table, chunk_rows, coefficients, update.grad_scale, update.found_inf,
        RULE=update.rule, NUM_STATES=len(STATES[update.rule]), MASTER=update.slices[0].master is not None,
        STOCHASTIC=update.stochastic, TYPE=TYPES[update.dtype], CHUNK_SIZE=CHUNK, BLOCK_SIZE=BLOCK, ROW_WORDS=WORDS,
        ROW_COLUMNS=COLUMNS, num_warps=WARPS,
    )  # fmt: skip
