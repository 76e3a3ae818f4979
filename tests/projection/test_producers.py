"""Rows of the layer before are put in another order only where it provably feeds this layer alone."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from ajour.projection.producers import find_producers


def test_a_chain_of_layers_feeds_feature_by_feature() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(), nn.Identity(), nn.Linear(8, 4))
    assert find_producers(model) == {"2": "0", "5": "2"}


def test_what_mixes_features_or_treats_them_differently_is_in_the_way() -> None:
    for between in (nn.LayerNorm(8), nn.Softmax(-1), nn.PReLU(8), nn.BatchNorm1d(8), nn.Unflatten(-1, (2, 4))):
        assert find_producers(nn.Sequential(nn.Linear(8, 8), between, nn.Linear(8, 8))) == {}


def test_a_hook_between_or_a_part_used_twice_is_in_the_way() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    handle = model[1].register_forward_hook(lambda module, args, y: None)
    assert find_producers(model) == {}
    handle.remove()
    assert find_producers(model) == {"2": "0"}
    shared = nn.Linear(8, 8)
    assert find_producers(nn.Sequential(shared, nn.ReLU(), shared)) == {}
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    tied[4].bias = tied[0].bias
    assert find_producers(tied) == {"4": "2"}


class Indexed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.body[0](x)


def test_a_sequential_whose_parts_are_called_elsewhere_proves_nothing() -> None:
    assert find_producers(Indexed()) == {}


class Feed(nn.Module):
    """As models write it, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 16), nn.functional.gelu, nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        x = self.act(x)
        x = self.down(x)
        return x


def test_classes_of_the_users_own_are_gathered() -> None:
    assert find_producers(Feed()) == find_producers(nn.Sequential(Feed(), nn.ReLU(), nn.Linear(8, 8))) == {}


class Calls(nn.Module):
    """Only ever calls its child as a whole, as the classes below do too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) * self.scale
        return y + torch.relu(x)


class Watched(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + reading(self, x)


class ByName(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + getattr(getattr(self, "bo" + "dy"), "0")(x)


class ByOperator(Calls):
    def forward(self, x: Tensor) -> Tensor:
        from operator import attrgetter

        return self.body(x) + attrgetter("body.0")(self)(x)


class ByPath(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.get_submodule("body.0")(x)


class ByDunder(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.__getattr__("body")[0](x)  # type: ignore[operator]


class BySuper(Calls):
    def forward(self, x: Tensor) -> Tensor:
        me = super()
        return self.body(x) + me.get_submodule("body.0")(x)  # type: ignore[no-any-return]


class Children(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + next(self.body.children())(x)


class Globally(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + of_all(x)


class OtherName(Calls):
    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        return this.body(x) + this.body[0](x)


class Aliased(Calls):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.body[0]]


class Closed(Calls):
    def __init__(self) -> None:
        super().__init__()
        first = self.body[0]
        self.step = {"step": lambda x: first(x)}


class Partial(Calls):
    def __init__(self) -> None:
        super().__init__()
        self.step = partial(run, self.body[0])


class OnTheClass(Calls):
    held: ClassVar[list[nn.Module]] = []

    def __init__(self) -> None:
        super().__init__()
        self.held[:] = [self.body[0]]


class WeightRead(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.body[0].weight


MODEL = Calls()


def of_all(x: Tensor) -> Tensor:
    return MODEL.body[0](x)  # type: ignore[no-any-return]


def run(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)  # type: ignore[no-any-return]


def reading(module: Calls, x: Tensor) -> Tensor:
    return module.body[0](x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "kind",
    [
        Watched, ByName, ByOperator, ByPath, ByDunder, BySuper, Children, Globally, OtherName, Aliased, Closed, Partial,
        OnTheClass, WeightRead,
    ],
)  # fmt: skip
def test_any_class_of_the_model_that_may_look_inside_is_in_the_way(kind: type[nn.Module]) -> None:
    assert find_producers(Calls()) == {"body.2": "body.0"}
    assert find_producers(kind()) == {}
    beside = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), kind())
    assert find_producers(beside) == {}


def test_a_hook_further_up_or_shared_memory_is_in_the_way() -> None:
    model = nn.Sequential(Calls())
    handle = model.register_forward_hook(lambda module, args, y: module[0].body[0](args[0]))
    assert find_producers(model) == {}
    handle.remove()
    assert find_producers(model) == {"0.body.2": "0.body.0"}
    model.register_buffer("view", model[0].body[0].weight.detach()[:2])
    assert find_producers(model) == {}


def test_torch_transformer_layers_are_known() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    found = find_producers(encoder)
    assert found == {f"layers.{i}.linear2": f"layers.{i}.linear1" for i in range(2)}
    odd = nn.TransformerEncoderLayer(16, 2, 32, activation=lambda x: torch.softmax(x, -1))
    assert find_producers(odd) == {}
