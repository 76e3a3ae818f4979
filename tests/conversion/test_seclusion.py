"""A layer that also stands where no swap reaches is refused, and only if something reads it there."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.conversion.seclusion import kept_elsewhere
from ajour.terms.errors import ConversionError
from ajour.terms.pattern import NM
from forced import plan_for, pruned, state_of


class Listed(nn.Module):
    def __init__(self, hold: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 24)
        self.also = hold(self.fc)

    def forward(self, x: Tensor) -> Tensor:
        held = self.also
        while not isinstance(held, nn.Module):
            held = next(iter(held.values() if isinstance(held, dict) else held))  # type: ignore[call-overload]
        y: Tensor = held(x)
        return y


@pytest.mark.parametrize(
    "hold", [lambda fc: [fc], lambda fc: ({"fc": fc},), lambda fc: {"a": [(fc, 1)]}, lambda fc: {fc}]
)
def test_a_layer_in_a_plain_container_is_refused(hold: Callable[[nn.Module], object]) -> None:
    model = pruned(nn.Sequential(Listed(hold)), NM(2, 4))
    before, plan, x = state_of(model), plan_for(model, NM(2, 4)), torch.randn(3, 32)
    y = model(x)
    with pytest.raises(ConversionError, match=r"layer '0\.fc' also stands in the plain attribute '0\.also', where it"):
        convert(model, plan)
    assert state_of(model).keys() == before.keys()
    assert torch.equal(model(x), y)


class Recorded(nn.Module):
    """Its records are nobody's way to the layer, and what is listed with other modules inside keeps its place."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(32, 24), nn.Tanh())
        self.records, self.also = [self.block[0]], [self.block]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.also[0](x)
        return y


def test_records_that_nothing_reads_and_listed_blocks_are_no_reason() -> None:
    model, x = pruned(Recorded(), NM(2, 4)), torch.randn(3, 32)
    dense = copy.deepcopy(model)
    assert kept_elsewhere(model) == {id(model.block): "also"}
    convert(model, plan_for(model, NM(2, 4)))
    torch.testing.assert_close(model(x), dense(x))
