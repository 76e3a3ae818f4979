"""find_weights: the masks of every producer are applied, from the names that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ajour.importers import Weight, find_weights, open_checkpoint
from ajour.layers import find_layers
from ajour.terms.errors import FileError


def weights_in(tensors: dict[str, Tensor], path: Path) -> dict[str, Weight]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "x.safetensors")
    return {weight.name: weight for weight in find_weights(open_checkpoint(path / "x.safetensors"))}


def half(n: int = 32, k: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(n, k), torch.rand(n, k) < 0.5


def test_a_pruned_module_s_state_dict_reads_like_the_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32))
    prune.l1_unstructured(model[0], "weight", 0.5)
    torch.save(model.state_dict(), tmp_path / "x.pt")
    weights = find_weights(open_checkpoint(tmp_path / "x.pt"))
    for weight, layer in zip(weights, find_layers(model), strict=True):
        assert (weight.name, weight.source, weight.note) == (layer.name, layer.mask_source, None)
        assert torch.equal(weight.read(), layer.weight())


@pytest.mark.parametrize(
    ("weight", "mask", "source"),
    [
        ("a.fc.weight_orig", "a.fc.weight_mask", "torch.nn.utils.prune"),
        ("a.fc.parametrizations.weight.original", "a.fc.parametrizations.weight.0.mask", "parametrization"),
        ("a.fc.weight", "a.fc._weight_mask", "modelopt"),
        ("a.fc.weight", "a.fc.__weight_mma_mask", "Apex ASP"),
        ("a.fc.weight", "a.fc.mask", "MaskLLM"),
        ("a.fc.weight", "__nncf_hooks.post_hooks.a:fc:weight__0.0.binary_mask", "NNCF"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_each_producer_s_mask_is_applied(
    tmp_path: Path, weight: str, mask: str, source: str, dtype: torch.dtype
) -> None:
    w, m = half()
    found = weights_in({weight: w, mask: m.to(dtype), "a.fc.bias": torch.randn(32)}, tmp_path)
    assert list(found) == ["a.fc"]
    assert (found["a.fc"].source, found["a.fc"].reason, found["a.fc"].note) == (source, None, None)
    assert torch.equal(found["a.fc"].read(), w * m)


def test_a_mask_that_is_none_is_refused(tmp_path: Path) -> None:
    w, _ = half()
    found = weights_in({"fc.weight": w, "fc.mask": w.clone()}, tmp_path)
    with pytest.raises(FileError, match=r"fc.mask should hold zeros and ones, as a mask beside fc.weight does"):
        found["fc"].read()


class Mask(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, w: Tensor) -> Tensor:
        return w * self.mask


def test_a_mask_that_the_file_has_lost_is_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 32))
    parametrize.register_parametrization(model[0], "weight", Mask(half()[1]))
    found = weights_in(dict(model.state_dict()), tmp_path)
    assert "not in the file, so this is the weight before pruning" in str(found["0"].note)
    assert torch.equal(found["0"].read(), model[0].parametrizations.weight.original)
    assert "without its weight_mask" in str(weights_in({"fc.weight_orig": half()[0]}, tmp_path)["fc"].note)


def test_conv1d_layers_are_turned_by_the_evidence_of_their_biases(tmp_path: Path) -> None:
    tensors = {
        "h.0.attn.c_proj.weight": torch.randn(32, 32),  # square: goes by the other c_proj
        "h.0.attn.c_proj.bias": torch.randn(32),
        "h.0.mlp.c_proj.weight": torch.randn(128, 32),
        "h.0.mlp.c_proj.bias": torch.randn(32),
        "h.0.mlp.out.weight": torch.randn(32, 128),
        "h.0.mlp.out.bias": torch.randn(32),
        "lm_head.weight": torch.randn(100, 32),
    }
    found = weights_in(tensors, tmp_path)
    for name in ("h.0.attn.c_proj", "h.0.mlp.c_proj"):
        assert found[name].kind == "Conv1D"
        assert torch.equal(found[name].read(), tensors[f"{name}.weight"].t())
    for name in ("h.0.mlp.out", "lm_head"):
        assert found[name].kind == "Linear"
        assert torch.equal(found[name].read(), tensors[f"{name}.weight"])
    assert found["h.0.mlp.c_proj"].shape == (32, 128)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "reason"),
    [
        ("model.embed_tokens.weight", (64, 32), "Embedding", "an embedding by its name"),
        ("transformer.wte.weight", (64, 32), "Embedding", "an embedding by its name"),
        ("lstm.weight_ih_l0", (64, 32), "RNN", "a recurrent layer by its name"),
        ("lstm.weight_hh_l1_reverse", (64, 32), "RNN", "a recurrent layer by its name"),
        ("mlp.experts.gate_up_proj", (4, 64, 32), "experts", "fused experts: 4 of them"),
        ("mlp.experts.3.w2.weight", (64, 32), "experts", "one of several experts by its name"),
        ("conv.weight", (32, 16, 3, 3), "Conv", "a convolution by its shape"),
    ],
)
def test_what_is_no_linear_layer_says_so(
    tmp_path: Path, name: str, shape: tuple[int, ...], kind: str, reason: str
) -> None:
    tensor = torch.randn(shape)
    (weight,) = weights_in({name: tensor}, tmp_path).values()
    assert weight.kind == kind
    assert reason in str(weight.reason)
    assert weight.read().numel() == tensor.numel()


def test_layers_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layers.{i}.{leaf}" for i in (0, 2, 10, 11) for leaf in ("a", "b")]
    found = weights_in({f"{name}.weight": torch.randn(16, 16) for name in reversed(names)}, tmp_path)
    assert list(found) == names


def test_small_and_one_dimensional_tensors_are_no_layers(tmp_path: Path) -> None:
    tensors = {"norm.weight": torch.randn(32), "pos": torch.randn(1, 64, 32), "table.weight": torch.randn(4, 64)}
    assert weights_in(tensors, tmp_path) == {}
