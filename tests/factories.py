"""Models that a command line can name: tests/ is on the path, so `factories:pruned` builds one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ajour.pruning import prune
from ajour.terms.pattern import NM


def pruned() -> nn.Module:
    """Two linear layers of 2:4 zeros; the same weights at every call."""
    generator = torch.Generator().manual_seed(7)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 8)
    prune(model, NM(2, 4))
    return model


def other() -> nn.Module:
    """The same layers, one weight of which differs."""
    model = pruned()
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    return model


def number() -> int:
    """No model."""
    return 3


class Reshaping(nn.Linear):
    """Takes pictures, which nothing but its forward knows."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return super().forward(x.reshape(batch, channels * height * width))


def reshaping() -> nn.Module:
    """A linear layer that takes pictures of 2x4x8."""
    return Reshaping(64, 8)


class OwnError(Exception):
    """An error that no library knows."""


class Failing(nn.Linear):
    """A layer that can't run."""

    def forward(self, x: Tensor) -> Tensor:
        raise OwnError("not today")


def failing() -> nn.Module:
    """A model whose forward raises an error of its own."""
    return Failing(64, 8)


def conv1d(n: int, k: int) -> nn.Module:
    """The Conv1D of transformers, or the test is skipped: a linear layer whose weight is [k, n]."""
    module: nn.Module = pytest.importorskip("transformers.pytorch_utils").Conv1D(n, k)
    nn.init.normal_(module.bias)  # type: ignore[arg-type]
    return module
