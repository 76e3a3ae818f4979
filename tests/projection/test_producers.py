"""Rows of the layer before are put in another order only where it provably feeds this layer alone."""

from __future__ import annotations

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


class InOneLine(Feed):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x))) + x


class SeenElsewhere(Feed):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.up(x))
        y = self.down(h)
        return y + h.sum()


class Mixed(Feed):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)).flip(-1))


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feed = Feed()

    def forward(self, x: Tensor) -> Tensor:
        return self.feed(x) + self.feed.up(x).sum()


def test_what_the_source_of_a_class_proves() -> None:
    assert find_producers(Feed()) == find_producers(InOneLine()) == {"down": "up"}
    assert find_producers(nn.ModuleList([Feed()])) == {"0.down": "0.up"}
    for unproven in (SeenElsewhere(), Mixed(), Watched()):
        assert find_producers(unproven) == {}


def test_torch_transformer_layers_are_known() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    found = find_producers(encoder)
    assert found == {f"layers.{i}.linear2": f"layers.{i}.linear1" for i in range(2)}
    odd = nn.TransformerEncoderLayer(16, 2, 32, activation=lambda x: torch.softmax(x, -1))
    assert find_producers(odd) == {}
