"""A clock that only says what it is told, pruned models, and a plan without a bar."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ajour.planning.plan import Plan
from ajour.planning.planner import plan
from ajour.planning.timing import Side

Price = Callable[[str, int], float]


@dataclass
class FakeClock:
    """µs by the side's name and its rows of x; remembers what was timed."""

    price: Price = lambda name, rows: {"aten": 200.0, "onednn": 100.0}.get(name, 50.0)
    seen: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, side: Side, first: int, count: int) -> float:
        rows = side.calls[0].args[0].shape[0]  # type: ignore[attr-defined]
        self.seen.append((side.name, rows))
        return self.price(side.name, rows)


class FakeWaiting:
    """What threads waited for a core in each turn to come, in µs; 0 once that is told."""

    def __init__(self, *turns: float) -> None:
        self.turns, self.total, self.asked = list(turns), 0.0, 0

    def __enter__(self) -> FakeWaiting:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self) -> float:
        self.asked += 1
        if self.asked % 2 == 0 and self.turns:  # asked before and after each turn
            self.total += self.turns.pop(0)
        return self.total


AddKernel = Callable[..., None]


def two_of_four(layer: nn.Linear) -> nn.Linear:
    """The layer, pruned to 2:4 at random."""
    with torch.no_grad():
        n, k = layer.weight.shape
        kept = torch.rand(n, k // 4, 4).topk(2, -1).indices
        layer.weight.mul_(torch.zeros(n, k // 4, 4).scatter(-1, kept, 1).view(n, k))
    return layer


def two_of_four_model(*sizes: int) -> nn.Sequential:
    """2:4 pruned layers 0, 1, ... of these sizes."""
    return nn.Sequential(*(two_of_four(nn.Linear(k, n)) for k, n in itertools.pairwise(sizes)))


def quiet(*args: Any, **kwargs: Any) -> Plan:
    """plan without a bar."""
    return plan(*args, progress=False, **kwargs)
