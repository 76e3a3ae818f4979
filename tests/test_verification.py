"""verify: each of its checks fails when what it checks is broken, and only then."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from ajour.conversion import convert
from ajour.conversion.fast_path import switch_on
from ajour.nn import linear_of
from ajour.pruning import prune
from ajour.terms.errors import VerificationError
from ajour.terms.pattern import NM, Block, Unstructured
from ajour.verification import verify
from hand_plan import hand_plan


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)
        self.mix, self.drop = nn.Linear(64, 32, bias=False), nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.mix(self.drop(self.down(self.act(self.up(x)))) * scale)


X = torch.randn(2, 5, 64)


def pair(dtype: torch.dtype = torch.float32) -> tuple[Net, Net]:
    """A converted model and its masked dense reference."""
    model = Net().to(dtype)
    prune(model, NM(2, 4), layers=["up"])
    prune(model, Block(16, 16), density=0.3, layers=["down"])
    prune(model, Unstructured(), density=0.2, layers=["mix"])
    reference = copy.deepcopy(model)
    return convert(model, hand_plan(model)), reference  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_right_model_is_verified(dtype: torch.dtype) -> None:
    model, reference = pair(dtype)
    report = verify(model, reference, X.to(dtype))
    assert report.ok, str(report)
    assert report.failures == ()
    assert report.against == "the reference in float64"
    assert report.error <= report.limit
    assert dict(report.calls) == {"nm_linear": 1, "block_linear": 1, "bitmap_linear": 1}
    assert [(layer.name, layer.op, layer.pattern) for layer in report.layers] == [
        ("up", "nm_linear", "2:4"),
        ("down", "block_linear", "block 16x16"),
        ("mix", "bitmap_linear", "unstructured"),
    ]
    for layer in report.layers:
        assert (layer.exact, layer.calls, layer.kernels) == (True, 1, ("reference",))
        assert layer.error_ratio is not None
        assert 0 <= layer.error_ratio <= 1


def test_resident_bytes_are_those_of_distinct_memory() -> None:
    model, reference = pair()
    report = verify(model, reference, X)
    assert report.reference_bytes == sum(p.nbytes for p in reference.parameters())
    packed = sum(buffer.nbytes for module in (model.up, model.down, model.mix) for buffer in module.buffers())
    assert report.bytes == packed + (128 + 64) * 4
    reference.again = reference.mix
    assert verify(model, reference, X).reference_bytes == report.reference_bytes


def test_the_reference_is_left_as_it_was_masks_hooks_shared_modules_and_all() -> None:
    model, reference = pair()
    reference.again = reference.mix
    torch_prune.custom_from_mask(reference.up, "weight", reference.up.weight != 0)
    kept = reference.up.weight.clone()
    before = {name: (tensor, tensor.data_ptr(), tensor.dtype) for name, tensor in reference.state_dict().items()}
    assert verify(model, reference, X).ok
    after = {name: (tensor, tensor.data_ptr(), tensor.dtype) for name, tensor in reference.state_dict().items()}
    assert {name: place[1:] for name, place in after.items()} == {name: place[1:] for name, place in before.items()}
    assert all(torch.equal(after[name][0], before[name][0]) for name in before)
    assert reference.up.weight.dtype == torch.float32
    assert torch.equal(reference.up.weight, kept)


@pytest.mark.parametrize(
    "example", [X, (X, 2.0), {"x": X, "scale": 0.5}, [X, (X[:1], 3.0)]], ids=["x", "()", "{}", "[]"]
)
def test_examples_of_every_kind(example: Any) -> None:
    model, reference = pair()
    report = verify(model, reference, example)
    assert report.ok, str(report)
    assert report.layers[0].calls == (2 if isinstance(example, list) else 1)


def test_modes_are_as_they_were() -> None:
    model, reference = pair()
    model.train()
    reference.train()
    reference.drop.eval()
    before = {name: module.training for name, module in reference.named_modules()}
    assert verify(model, reference, X).ok
    assert model.training
    assert {name: module.training for name, module in reference.named_modules()} == before


def wrong_weight(model: Net, reference: Net) -> None:
    with torch.no_grad():
        reference.up.weight[3, 5] += 1e-3


def wrong_place(model: Net, reference: Net) -> None:
    matrix = model.mix.matrix()
    matrix.values[7] *= -1
    model.mix = linear_of(matrix)


def bypassed(model: Net, reference: Net) -> None:
    weight, bias = reference.up.weight, reference.up.bias
    vars(model)["up_weight"] = weight
    object.__setattr__(model.up, "forward", lambda x: nn.functional.gelu(nn.functional.linear(x, weight, bias)))


def unknown(model: Net, reference: Net) -> None:
    del reference.mix
    reference.mixed = nn.Linear(64, 32, bias=False)
    reference.forward = lambda x: reference.mixed(reference.down(reference.act(reference.up(x))))  # type: ignore[method-assign]
    with torch.no_grad():
        reference.mixed.weight.copy_(model.mix.matrix().to_dense())


def off(model: Net, reference: Net) -> None:
    whole = model.down.op.kernels["reference"].run

    def slightly_off(*args: Any) -> Tensor:
        return whole(*args) * (1 + 1e-4)

    object.__setattr__(model.down.op.kernels["reference"], "run", slightly_off)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_weight, "up: its weight is not the reference's"),
        (wrong_place, "mix: its weight is not the reference's"),
        (wrong_place, "outputs: the largest error is"),
        (bypassed, "up: its op was never called by this example"),
        (unknown, "mix: the reference has no weight of that name"),
        (off, "down: its error is .* times what the error rule allows"),
    ],
)
def test_each_fault_is_found(spoil: Callable[[Net, Net], None], message: str) -> None:
    model, reference = pair()
    kernel = model.down.op.kernels["reference"]
    before = kernel.run
    try:
        spoil(model, reference)
        report = verify(model, reference, X)
    finally:
        object.__setattr__(kernel, "run", before)
    assert not report.ok
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(report.failures))
    assert "FAILED" in str(report)


def test_a_fast_path_that_bypasses_layers_is_found_though_outputs_agree() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2).eval()
    prune(model, NM(2, 4))
    reference = copy.deepcopy(model)
    convert(model, hand_plan(model))
    report = verify(model, reference, X)
    assert report.ok, str(report)
    assert dict(report.calls) == {"nm_linear": 4}
    assert len(report.notes) == 3  # two layers, and the encoder's own
    assert "fast path of TransformerEncoderLayer is switched off" in str(report)
    for module in model.modules():
        switch_on(module)
    report = verify(model, reference, X)
    assert len(report.failures) == 4
    assert all("was never called" in failure for failure in report.failures)


def test_an_unconverted_model_is_no_success() -> None:
    _, reference = pair()
    assert verify(copy.deepcopy(reference), reference, X).failures == ("no layer of the model is converted",)


def test_a_plan_that_keeps_everything_dense_is_no_failure() -> None:
    reference = Net()
    model = convert(copy.deepcopy(reference), hand_plan(reference))
    report = verify(model, reference, X)
    assert report.ok, str(report)
    assert report.notes == ("the model's plan keeps every layer as it is",)


class Outputs(NamedTuple):
    y: Tensor
    ids: Tensor
    more: tuple[Tensor, ...]


class Many(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Outputs:  # type: ignore[override]
        y = super().forward(x)
        return Outputs(y, y.argmax(-1), (y * 2, y[..., :0]))


def test_nested_outputs_are_compared_and_other_shapes_refused() -> None:
    model, reference = pair()
    model.__class__ = reference.__class__ = Many
    assert verify(model, reference, X).ok
    model.__class__ = Net
    with pytest.raises(
        VerificationError, match=r"there is nothing to compare: the model's outputs are \[\(2, 5, 32\)\]"
    ):
        verify(model, reference, X)


class Picky(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("no float64 here")
        return super().forward(x, scale)


def test_a_reference_that_can_t_run_in_float64_is_compared_with_itself() -> None:
    model, reference = pair()
    reference.__class__ = Picky
    report = verify(model, reference, X)
    assert report.ok, str(report)
    assert report.against == "the reference"
    with torch.no_grad():
        reference.mix.weight.mul_(1.001)
    assert "outputs: the largest error" in verify(model, reference, X).failures[0]


def test_nan_in_the_same_places_is_equal() -> None:
    model, reference = pair()
    x = X.clone()
    x[0, 0] = torch.nan
    assert verify(model, reference, x).ok


def test_the_report_prints_and_is_json() -> None:
    report = verify(*pair(), X)
    text = str(report)
    assert "verified" in text
    assert "block 16x16" in text
    assert "op calls: bitmap_linear 1, block_linear 1, nm_linear 1" in text
    data = json.loads(report.to_json())
    assert data["ok"] is True
    assert data["layers"][0]["name"] == "up"


class Counting(nn.Module):
    """Writes one buffer in place and replaces another."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 64)
        self.register_buffer("written", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.written += 1
        self.replaced = self.replaced + 1
        return self.up(x)  # type: ignore[no-any-return]


def test_buffers_of_both_models_are_as_they_were() -> None:
    model = prune(Counting(), NM(2, 4))
    reference = copy.deepcopy(model)
    assert verify(convert(model, hand_plan(model)), reference, X).ok
    for buffer in (*model.buffers(), *reference.buffers()):
        if buffer.shape == (1,):
            assert buffer == 0
            assert buffer.dtype == torch.float32


def test_a_converted_reference_is_compared_in_its_own_dtype() -> None:
    model, _ = pair()
    assert verify(model, copy.deepcopy(model), X).against == "the reference"
