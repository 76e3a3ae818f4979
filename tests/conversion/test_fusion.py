"""Activations are folded where that is provable, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajour.conversion import convert, revert
from ajour.conversion.activations import Folded
from ajour.conversion.fusion import find_fusions
from ajour.terms.pattern import NM
from forced import counting, plan_for, pruned


def found(model: nn.Module) -> dict[str, str]:
    return {name: fusion.activation for name, fusion in find_fusions(model).items()}


class Mlp(nn.Module):
    def __init__(self, act: object = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.act = nn.GELU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        return self.fc2(x)


class Nested(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Gated(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)) * x.sum())


class Renamed(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x.to(self.fc1.weight.dtype))
        y = self.act(h)
        return self.fc2(y)


@pytest.mark.parametrize("kind", [Mlp, Nested, Gated, Renamed])
@pytest.mark.parametrize(
    ("act", "name"),
    [
        (nn.ReLU(inplace=True), "relu"), (nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu_tanh"), (nn.SiLU(), "silu"),
        (F.relu, "relu"), (F.gelu, "gelu"), (F.silu, "silu"), (torch.relu, "relu"),
    ],
)  # fmt: skip
def test_an_mlp_is_fused_and_comes_back(kind: type[Mlp], act: object, name: str) -> None:
    model = pruned(kind(act), NM(2, 4))
    dense, x = copy.deepcopy(model), torch.randn(5, 16)
    keys = list(model.state_dict())
    convert(model, plan_for(model, NM(2, 4)))
    assert model.fc1.activation == name
    assert model.fc2.activation == "none"
    assert isinstance(model.act, Folded)
    with counting(nm_linear=2):
        torch.testing.assert_close(model(x), dense(x))
    with counting(nm_linear=2):
        torch.testing.assert_close(copy.deepcopy(model)(x), dense(x))
    revert(model)
    assert model.act is act
    assert list(model.state_dict()) == keys
    assert ("act" in vars(model)) == ("act" in vars(dense))
    assert torch.equal(model(x), dense(x))


def test_fusing_can_be_declined() -> None:
    model = pruned(Mlp(), NM(2, 4))
    convert(model, plan_for(model, NM(2, 4)), fuse=False)
    assert type(model.act) is nn.GELU
    assert model.fc1.activation == "none"


def test_only_layers_that_are_converted_take_an_activation_over() -> None:
    model = pruned(Mlp(), NM(2, 4))
    convert(model, plan_for(model, NM(2, 4), skip=("fc1",)))
    assert type(model.act) is nn.GELU


def test_sequentials_that_run_as_a_whole_are_fused() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.SiLU())
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Dropout(), nn.GELU(), inner)
    assert found(model) == {"0": "relu", "5.0": "silu"}


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Tapped(Whole):
    def forward(self, x: Tensor) -> Tensor:
        return self.net[0](x)


class Walked(Whole):
    def forward(self, x: Tensor) -> Tensor:
        for step in self.net:
            x = step(x) + 1
        return x


class Listed(Whole):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU())])  # type: ignore[assignment]


def test_sequentials_that_somebody_may_look_into_are_not() -> None:
    assert found(Whole()) == {"net.0": "relu"}
    for kind in (Tapped, Walked, Listed):
        assert found(kind()) == {}


class SeenTwice(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        y = self.act(h)
        return self.fc2(y) + h.sum()


class UsedTwice(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        return self.act(self.fc2(x))


class SomethingBetween(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x + 1
        x = self.act(x)
        return self.fc2(x)


class OtherMethod(Mlp):
    def features(self, x: Tensor) -> Tensor:
        return self.fc1(x)


class GivesItselfAway(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        return free(self, x)


class Overridden(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return free_forward(x)


def free(module: Mlp, x: Tensor) -> Tensor:
    return module.fc2(x) + module.fc1(x).sum()


def free_forward(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("kind", [SeenTwice, UsedTwice, SomethingBetween, OtherMethod, GivesItselfAway, Overridden])
def test_what_is_not_provable_is_not_fused(kind: type[Mlp]) -> None:
    assert found(kind()) == {}


def hook(model: Mlp) -> None:
    model.act.register_forward_hook(lambda module, args, y: None)


def other_forward(model: Mlp) -> None:
    model.forward = lambda x: model.fc1(x)  # type: ignore[method-assign]


def shared(model: Mlp) -> None:
    model.again = model.act  # type: ignore[assignment]


def unknown(model: Mlp) -> None:
    model.act = nn.Hardswish()


@pytest.mark.parametrize("spoil", [hook, other_forward, shared, unknown])
def test_an_activation_that_somebody_else_sees_is_left_alone(spoil: Callable[[Mlp], None]) -> None:
    model = Mlp()
    assert found(model) == {"fc1": "gelu"}
    spoil(model)
    assert found(model) == {}


def test_a_class_that_was_patched_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Patched(Mlp):
        pass

    monkeypatch.setattr(Patched, "forward", lambda self, x: self.act(self.fc1(x)) + self.fc1(x))
    assert found(Patched()) == {}


def test_a_fused_layer_trains() -> None:
    model = pruned(Mlp(), NM(2, 4))
    dense, x = copy.deepcopy(model), torch.randn(5, 16)
    dense(x).square().sum().backward()
    convert(model, plan_for(model, NM(2, 4)), trainable=True)
    model(x).square().sum().backward()
    torch.testing.assert_close(model.fc1.bias.grad, dense.fc1.bias.grad)


class Feeding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)
        self.net = nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.second(self.act(self.first(x))))  # type: ignore[no-any-return]


class LooksInside(nn.Module):
    """Uses a layer of its child by itself, and indexes its Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Feeding()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.child(x) + torch.tanh(self.child.first(x)) + self.child.net[0](x)
        return y


def test_no_activation_is_folded_whose_layer_another_class_calls() -> None:
    assert set(find_fusions(Feeding())) == {"first", "net.0"}
    assert find_fusions(LooksInside()) == {}
    model = pruned(LooksInside(), NM(2, 4)).eval()
    x = torch.randn(3, 16)
    expected = model(x)
    torch.testing.assert_close(convert(model, plan_for(model, NM(2, 4)))(x), expected)


def reading(module: ReadByAFunction, x: Tensor) -> Tensor:
    return module.child.first(x)  # type: ignore[no-any-return]


class ReadByAFunction(LooksInside):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.child(x) + reading(self, x)
        return y


class ReadByName(LooksInside):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.child(x) + self.child.get_submodule("first")(x)
        return y


class Aliased(LooksInside):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.child.first]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.child(x) + self.steps[0](x)
        return y


@pytest.mark.parametrize("kind", [ReadByAFunction, ReadByName, Aliased])
def test_no_activation_is_folded_where_an_unregistered_reader_sees_the_layer(kind: type[LooksInside]) -> None:
    model = pruned(kind(), NM(2, 4)).eval()
    assert find_fusions(model) == {}
    if kind is Aliased:
        return  # converting frees the memory of the dense layer, so the alias fails aloud
    x = torch.randn(3, 16)
    expected = model(x)
    torch.testing.assert_close(convert(model, plan_for(model, NM(2, 4)))(x), expected)
