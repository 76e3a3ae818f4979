"""R-AMT: `X.mask_real` as bytes, one bit for each weight in row-major order, the most significant bit first; 1 is kept.

In an attention `X.attn.mask_real` is for its in_proj_weight. The weights themselves are those of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ajour.importers.change import Change
from ajour.importers.tool import masked
from ajour.terms.errors import FileError

NAME = "R-AMT"
_LEAF = ".mask_real"


def is_one(state: Mapping[str, Any]) -> bool:
    """Whether some value is a mask as bytes."""
    return any(isinstance(value, bytes) and name.endswith(_LEAF) for name, value in state.items())


def changes(state: Mapping[str, Any]) -> Iterator[Change]:
    """One for each mask."""
    for name, bits in state.items():
        if isinstance(bits, bytes) and name.endswith(_LEAF):
            path = name.removesuffix(_LEAF)
            yield Change(name, (f"{path}.in_proj_weight", f"{path}.weight"), NAME, "mask", partial(_apply, name, bits))


def _apply(name: str, bits: bytes, base: Tensor) -> Tensor:
    count = base.numel()
    if len(bits) != -(-count // 8):
        raise FileError(f"{name}: expected {-(-count // 8)} bytes for {tuple(base.shape)}, found {len(bits)}")
    held = torch.frombuffer(bytearray(bits), dtype=torch.uint8) if bits else torch.empty(0, dtype=torch.uint8)
    kept = torch.stack([(held >> place) & 1 for place in range(7, -1, -1)], dim=1).view(-1)
    if bool(kept[count:].any()):
        raise FileError(f"{name}: a bit beyond the last of {count} weights is set")
    return masked(base.cpu(), kept[:count].view(base.shape))
