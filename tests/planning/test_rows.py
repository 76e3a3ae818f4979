"""The example shows which rows each layer sees, and the model never notices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ajour.layers import find_layers
from ajour.planning.rows import MOST_COUNTS, learn_rows, planned_rows


class _Model(nn.Module):
    """Counts its calls in a buffer, draws random numbers, and leaves one layer out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(32, 16)
        self.unused = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, scale: float = 1.0, fail: bool = False) -> Tensor:
        self.calls += 1
        h = self.drop(self.norm(self.first(x).flatten(0, -2)))
        if fail:
            raise RuntimeError("a failure of the model's own")
        noise: Tensor = self.last(h) * scale + torch.randn(())
        return self.last(noise[:1] @ torch.ones(16, 32))


def _seen(model: nn.Module, example: Any) -> dict[str, set[int]]:
    return learn_rows(model, find_layers(model), example)


def test_rows_are_all_leading_sides_multiplied() -> None:
    assert _seen(_Model(), torch.randn(4, 5, 16)) == {"first": {20}, "last": {20, 1}}


@pytest.mark.parametrize(
    "example",
    [(torch.randn(3, 16), 2.0), {"x": torch.randn(3, 16), "scale": 2.0}, [(torch.randn(3, 16),)]],
    ids=["tuple", "mapping", "list"],
)
def test_examples_may_be_tuples_mappings_and_lists_of_several(example: Any) -> None:
    assert _seen(_Model(), example) == {"first": {3}, "last": {3, 1}}


def test_several_examples_add_up() -> None:
    seen = _seen(_Model(), [torch.randn(3, 16), {"x": torch.randn(7, 2, 16)}])
    assert seen == {"first": {3, 14}, "last": {3, 14, 1}}


def test_inputs_may_come_as_keywords_of_the_layer() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)  # type: ignore[no-any-return]

    assert _seen(Keyword(), torch.randn(6, 16)) == {"inner": {6}}


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_exactly_as_it_was(fail: bool) -> None:
    model = _Model().train()
    model.drop.eval()
    before = copy.deepcopy(model.state_dict())
    flags = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    example = {"x": torch.randn(4, 16, generator=torch.Generator().manual_seed(1)), "fail": fail}
    if fail:
        with pytest.raises(RuntimeError, match="a failure of the model's own"):
            _seen(model, example)
    else:
        _seen(model, example)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_an_encoder_layer_is_seen_though_its_fast_path_would_bypass_it() -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    seen = _seen(model, torch.randn(2, 5, 32))
    assert seen == {"linear1": {10}, "linear2": {10}}


def test_many_row_counts_are_thinned_out_evenly() -> None:
    assert planned_rows(set(range(1, 101)), None) == (1, 34, 67, 100)
    assert len(planned_rows(set(range(5)), None)) == MOST_COUNTS
    assert planned_rows(set(range(1, 101)), [9, 3, 3]) == (3, 9)
    assert planned_rows({0}, None) == ()


class _Replacing(nn.Module):
    """Puts a new buffer in the old one's place, as dynamic position encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.layer(x)  # type: ignore[no-any-return]


def test_buffers_that_the_forward_replaces_are_the_old_ones_again() -> None:
    model = _Replacing()
    calls = model.calls
    _seen(model, torch.randn(2, 16))
    assert model.calls is calls
    assert calls == 0


def test_a_model_made_in_inference_mode_is_watched_and_as_it_was() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert _seen(model, torch.randn(2, 16)) == {"0": {2}}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("given", [True, False])
def test_an_encoder_with_a_padding_mask_is_watched_and_its_padding_said(given: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, 1)})
    encoder = model["encoder"]
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if given else None
    told: list[str] = []
    example = {"src": torch.randn(2, 5, 16), "src_key_padding_mask": padding}
    model.forward = lambda **inputs: encoder(**inputs)  # type: ignore[method-assign, assignment]
    seen = learn_rows(model, find_layers(model), example, told.append)
    assert seen == {"encoder.layers.0.linear1": {10}, "encoder.layers.0.linear2": {10}}
    assert [note.partition(":")[0] for note in told] == ["encoder"] * given
    assert all("puts out 0.0 by its fast path, which converting" in note for note in told)
    assert torch.backends.mha.get_fastpath_enabled()
