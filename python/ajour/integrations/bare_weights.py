"""A checkpoint file without its model: layers that can be planned for numbers of rows, but not run together."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ajour.importers import find_weights, open_checkpoint
from ajour.integrations.loading import check_device
from ajour.terms.errors import FileError


def load_layers(path: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Every linear layer of a file by its name, without biases, which a file alone can't assign.

    Raises FileError if the file is damaged or holds no linear layer, MachineError if the device is missing.
    """
    check_device(torch.device(device))
    root = nn.Module()
    found = [weight for weight in find_weights(open_checkpoint(path)) if weight.reason is None]
    if not found:
        raise FileError(f"{path} holds no weight of a linear layer; `ajour inspect {path}` lists what it holds")
    for weight in found:
        w = weight.read().to(device=device, dtype=dtype)
        layer = nn.Linear(w.shape[1], w.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(w, requires_grad=False)
        _place(root, weight.name, layer)
    return root.eval()


def _place(root: nn.Module, name: str, layer: nn.Module) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, layer)
