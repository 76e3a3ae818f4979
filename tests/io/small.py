"""A small model that holds everything a file must."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.pruning import prune
from ajour.terms.pattern import NM, Block, Unstructured
from hand_plan import hand_plan


class Small(nn.Module):
    """Every format, a fused activation, a tied head, a buffer that no state_dict holds."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 64, dtype=dtype)
        self.up, self.act = nn.Linear(64, 128, dtype=dtype), nn.GELU()
        self.down = nn.Linear(128, 64, dtype=dtype)
        self.mix = nn.Linear(64, 64, bias=False, dtype=dtype)
        self.norm = nn.LayerNorm(64, dtype=dtype)
        self.head = nn.Linear(64, 60, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.arange(64, dtype=torch.float32).to(dtype) / 100, persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.shift
        x = self.down(self.act(self.up(x)))
        return self.head(self.norm(self.mix(x)))


IDS = torch.randint(60, (3, 7))


def pruned(dtype: torch.dtype = torch.float32) -> Small:
    model = Small(dtype).eval()
    prune(model, NM(2, 4), layers=["up"])
    prune(model, Block(16, 16), density=0.25, layers=["down"])
    prune(model, Unstructured(), density=0.2, layers=["mix"])
    model.steps.fill_(17)
    return model


def converted(dtype: torch.dtype = torch.float32, trainable: bool = False) -> Small:
    model = pruned(dtype)
    return convert(model, hand_plan(model), trainable=trainable)  # type: ignore[return-value]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def skeletons() -> dict[str, Callable[[], nn.Module]]:
    def on_meta() -> nn.Module:
        with torch.device("meta"):
            return Small().eval()

    return {"dense": lambda: Small().eval(), "meta": on_meta, "converted": converted}
