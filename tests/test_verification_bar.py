"""The bar of a whole model's outputs: the dense libraries that it runs on, the one with the larger error."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.layers import find_layers
from ajour.ops import LINEAR_OPS
from ajour.ops.nm_linear import native_kernel
from ajour.planning.plan import RowChoice
from ajour.pruning import prune
from ajour.terms.pattern import NM, Dense
from ajour.verification import verify
from ajour.verification.outputs import compare, run_on_onednn
from hand_plan import hand_plan

X = torch.randn(5, 64)


def coarse(kernel: Any) -> Any:
    """oneDNN as it may be: sums with an error 8 times as large as another library's."""

    def run(x: Tensor, packed: Any, *rest: Any) -> Tensor:
        y: Tensor = kernel.run(x, packed, *rest)
        exact = x.double() @ packed[0].double().T
        size = (y - exact).abs().max() if rest[0] is None else (y - exact - rest[0].double()).abs().max()
        return y + 8 * size.to(y.dtype)

    return replace(kernel, run=run)


@pytest.fixture
def coarse_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in LINEAR_OPS.values():
        if "onednn" in op.kernels:
            monkeypatch.setitem(op.kernels, "onednn", coarse(op.kernels["onednn"]))


def converted(kernel: str) -> tuple[nn.Module, nn.Module]:
    reference = prune(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32)), NM(2, 4))
    model = copy.deepcopy(reference)
    return convert(model, hand_plan(model, kernel), fuse=False), reference


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_a_model_on_onednn_is_held_against_onednn_too(coarse_onednn: None) -> None:
    model, reference = converted("onednn")
    report = verify(model, reference, X)
    assert report.ok, str(report)
    onednn = report.limit
    model, reference = converted("aten")
    assert verify(model, reference, X).limit < onednn, "a library that no layer runs on moves no bar"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_a_kernel_that_expands_for_onednn_is_held_against_it_too(
    coarse_onednn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_kernel, "_ONEDNN", coarse(native_kernel._ONEDNN))
    model, reference = converted("cpu_unpack")
    report = verify(model, reference, torch.randn(128, 64))
    assert report.ok, str(report)
    assert [layer.kernels for layer in report.layers] == [("cpu_unpack",)] * 2


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_an_error_larger_than_any_library_s_still_fails(coarse_onednn: None) -> None:
    model, reference = converted("onednn")
    with torch.no_grad():
        reference[2].bias.add_(1e-3)
    report = verify(model, reference, X)
    assert any(failure.startswith("outputs: the largest error is") for failure in report.failures)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_the_reference_on_onednn_is_itself_afterwards() -> None:
    _, reference = converted("aten")
    before = reference(X)
    (y,) = run_on_onednn(reference, find_layers(reference), X[None])
    torch.testing.assert_close(y, before[None], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in reference.modules())
    assert torch.equal(reference(X), before)


def test_the_larger_error_of_two_libraries_is_the_bar() -> None:
    exact = torch.ones(4, dtype=torch.float64)
    near, far, y = (torch.full((4,), 1 + error) for error in (1e-4, 3e-4, 5e-4))
    alone, both = compare([y], [near], [exact])[1], compare([y], [near], [exact], [far])[1]
    assert alone == pytest.approx(2e-4, rel=0.01)
    assert both == pytest.approx(6e-4, rel=0.01)
    assert compare([y], [far], [exact], [near])[1] == both


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("served", ["sparse", "onednn"])
def test_an_encoder_whose_padding_is_no_longer_zero_fails_and_says_why(served: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    reference = prune(nn.TransformerEncoder(layer, 2).eval(), NM(2, 4))
    plan = hand_plan(reference)
    if served == "onednn":
        onednn = {"op": "dense_linear", "stored": Dense(), "kernels": (RowChoice(None, "onednn"),)}
        choices = [replace(c, **onednn) if c.layer == "layers.0.linear2" else c for c in plan.choices]
        plan = replace(plan, choices=tuple(choices))
    model = convert(copy.deepcopy(reference), plan)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    example = {"src": torch.randn(2, 5, 16), "src_key_padding_mask": padding}
    report = verify(model, reference, example)
    assert any(served in layer.kernels for layer in report.layers) == (served == "onednn")
    assert [failure.partition(":")[0] for failure in report.failures] == ["outputs"]
    assert report.limit < 1e-4, "what oneDNN puts out at padding, without the fast path, is no excuse"
    assert "padding (src_key_padding_mask) is no longer put out as 0.0" in str(report)
    assert verify(model, reference, example["src"]).ok
