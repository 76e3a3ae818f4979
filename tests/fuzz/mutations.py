"""Mutations of bytes: blind ones, and ones that know numbers, JSON and pickles."""

from __future__ import annotations

import pickle
import random
import struct
from pathlib import Path

CANARY = Path("/tmp/ajour-fuzz-canary")  # a payload that ever ran would leave it
_NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(CANARY)!r}, 'w')",)


_CALLS = [pickle.dumps(_Payload(), protocol)[2:-1] for protocol in (2, 4)]
_TOKENS = [
    *_CALLS, b"cos\nsystem\n(X\x08\x00\x00\x00touch /xtR", b"cbuiltins\neval\n", b"ctorch\nload\n", b"cposix\nsystem\n",
    b"c__builtin__\ngetattr\n", b"ctorch.nn.modules.linear\nLinear\n", b"}", b"]", b"(", b"t", b"R", b"b", b"0", b"2",
    b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 7 + b"\x7f", b"X\xff\xff\xff\xff", b"q\x00h\x00\x86q\x00h\x00\x86", b"\x85\x85\x85",
    b'{"', b'":', b"[[[[", b'"data_offsets":[0,', b'"shape":[', b"99999999999", b"-1", b"1e999", b"null", b"NaN",
    b"F32", b"F64", b"I64", b"BOOL", b"U8", b"../", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"PK\x01\x02",
    b"PK\x05\x06", b"\x80\x02", b".", b"q", b"weight", b"mask",
]  # fmt: skip


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to six changes; `other` is a file to splice from."""
    held = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_MUTATIONS)(held, other, rng)
    return bytes(held)


def _place(held: bytearray, rng: random.Random) -> int:
    """Mostly near the beginning or the end, where headers and directories stand."""
    size, region = len(held), rng.random()
    if region < 0.5:
        return rng.randrange(min(size, 1024)) if size else 0
    if region < 0.65:
        return size - 1 - rng.randrange(min(size, 1024)) if size else 0
    return rng.randrange(size) if size else 0


def _flip(held: bytearray, other: bytes, rng: random.Random) -> None:
    if held:
        held[_place(held, rng)] ^= 1 << rng.randrange(8)


def _set(held: bytearray, other: bytes, rng: random.Random) -> None:
    if held:
        held[_place(held, rng)] = rng.randrange(256)


def _number(held: bytearray, other: bytes, rng: random.Random) -> None:
    width, value, place = rng.choice(("B", "<H", "<I", "<Q")), rng.choice(_NUMBERS), _place(held, rng)
    packed = struct.pack(width, value % 2 ** (8 * struct.calcsize(width)))
    held[place : place + len(packed)] = packed


def _digits(held: bytearray, other: bytes, rng: random.Random) -> None:
    """Another number where one stands in text."""
    place = _place(held, rng)
    while place < len(held) and not 48 <= held[place] <= 57:
        place += 1
    end = place
    while end < len(held) and 48 <= held[end] <= 57:
        end += 1
    if place < len(held):
        held[place:end] = str(rng.choice((*_NUMBERS, rng.randrange(100)))).encode()


def _insert(held: bytearray, other: bytes, rng: random.Random) -> None:
    place = _place(held, rng)
    held[place:place] = rng.choice(_TOKENS)


def _overwrite(held: bytearray, other: bytes, rng: random.Random) -> None:
    place, token = _place(held, rng), rng.choice(_TOKENS)
    held[place : place + len(token)] = token


def _delete(held: bytearray, other: bytes, rng: random.Random) -> None:
    place = _place(held, rng)
    del held[place : place + rng.choice((1, 2, 4, 8, 64))]


def _repeat(held: bytearray, other: bytes, rng: random.Random) -> None:
    place = _place(held, rng)
    held[place:place] = held[place : place + rng.choice((1, 4, 16, 64, 256))] * rng.choice((1, 2, 50))


def _splice(held: bytearray, other: bytes, rng: random.Random) -> None:
    if other:
        start, place = rng.randrange(len(other)), _place(held, rng)
        held[place : place + rng.choice((0, 16, 256))] = other[start : start + rng.choice((4, 16, 64, 512))]


def _truncate(held: bytearray, other: bytes, rng: random.Random) -> None:
    del held[_place(held, rng) :]


_MUTATIONS = (
    _flip, _flip, _set, _set, _set, _number, _number, _digits, _digits, _insert, _overwrite, _delete, _repeat, _splice,
    _truncate,
)  # fmt: skip
