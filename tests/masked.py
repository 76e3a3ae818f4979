"""A small model under masks, and torch's own optimizer in float64 to compare masked ones with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ajour.terms.pattern import Unstructured
from ajour.train import Masks


def small() -> tuple[nn.Module, Masks]:
    model = nn.Sequential(nn.Linear(37, 50), nn.Tanh(), nn.Linear(50, 11))
    return model, Masks.from_pattern(model, Unstructured(), 0.4)


def assert_held(model: nn.Module, masks: Masks) -> None:
    for name, mask in masks.items():
        dropped = model.get_parameter(name).detach()[~mask.dense()]
        assert not dropped.view(torch.uint8).any(), f"{name} must be +0.0 bit for bit where it is masked"


class Reference:
    """torch's own optimizer in float64 on dense weights; gradients and weights are multiplied by the masks."""

    def __init__(self, model: nn.Module, masks: Masks, kind: type, options: dict[str, Any]) -> None:
        self.model = copy.deepcopy(model).double()
        self.kept = {name: mask.dense().double() for name, mask in masks.items()}
        options = {"weight_decay": 0.0} | options
        self.optimizer = getattr(torch.optim, kind.__name__.removeprefix("Masked"))(self.model.parameters(), **options)
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        for name, kept in self.kept.items():
            self.model.get_parameter(name).mul_(kept)

    def step(self, grads: dict[str, Tensor], clip: float | None) -> None:
        for name, p in self.model.named_parameters():
            p.grad = grads[name].double() * self.kept.get(name, 1.0)
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.hold()

    def assert_near(self, model: nn.Module) -> None:
        for wanted, found in zip(self.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-6)
