"""Files of the tools that can't be installed, written by hand: into a model, converted, saved, and back again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ajour
from hand_plan import hand_plan

KEPT = torch.ones(24, 8, 4).scatter(-1, torch.rand(24, 8, 4).topk(2).indices, 0.0).view(24, 32) != 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(32, 24), nn.BatchNorm1d(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x))


def gaps(base: dict[str, Tensor]) -> object:
    """A difference that takes every dropped weight to zero."""
    delta = torch.where(KEPT, torch.zeros(()), -base["fc.weight"]).numpy().flatten(order="F")
    places = np.flatnonzero(delta)
    steps = [places[0], *np.diff(places).tolist()]
    return {
        "diffs": {"fc.weight": {"size": KEPT.shape, "index_steps": steps, "values": torch.tensor(delta[places])}},
        "abs": {},
    }


def places(base: dict[str, Tensor]) -> object:
    dropped = (~KEPT).flatten().nonzero().flatten()
    values = -base["fc.weight"].flatten()[dropped]
    return {"base_model.model.fc.sft_delta.values": values, "base_model.model.fc.sft_delta.indices": dropped.int()}


def bits(base: dict[str, Tensor]) -> object:
    return {"state_dict": {"fc.mask_real": bytes(np.packbits(KEPT.numpy().reshape(-1)))}, "epoch": 1}


WRITTEN: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "asp": lambda base: {**base, "fc.weight": base["fc.weight"] * KEPT, "fc.__weight_mma_mask": KEPT},
    "maskllm": lambda base: {**base, "fc.mask": KEPT.float()},
    "openlth": lambda base: {**{f"model.{k}": v for k, v in base.items()}, "mask_fc___weight": KEPT.float()},
    "modelopt": lambda base: {"model_state_dict": {**base, "fc._weight_mask": KEPT}, "modelopt_state": {"v": 1}},
    "mask.pth": lambda base: {"fc.weight": KEPT.int()},
    "r_amt": bits,
    "lt_sft": gaps,
    "peft_sft": places,
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_from_file_to_converted_model_to_saved_file_and_back(kind: str, tmp_path: Path) -> None:
    model = Net().eval()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(WRITTEN[kind](base), tmp_path / "x.pt")
    if "fc.bias" in base and kind in ("asp", "maskllm", "openlth", "modelopt"):  # the file has all there is
        nn.init.ones_(model.fc.weight)
    ajour.read(tmp_path / "x.pt", model)
    wanted = base | {"fc.weight": base["fc.weight"] * KEPT}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in wanted.items())
    assert ajour.inspect(model).layers[0].pattern == ajour.NM(2, 4)
    ajour.save(ajour.convert(model, hand_plan(model)), tmp_path / "y.safetensors")
    found = ajour.read(tmp_path / "y.safetensors")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    again = ajour.revert(ajour.load(tmp_path / "y.safetensors", Net().eval()))
    assert torch.equal(again.fc.weight, wanted["fc.weight"])


def test_a_masksparsity_model_goes_the_same_way(tmp_path: Path) -> None:
    model, kept = Net().eval(), torch.rand(24) < 0.5
    torch.save(OrderedDict(bn=kept), tmp_path / "x.pt")
    ajour.read(tmp_path / "x.pt", model)
    ajour.prune(model, ajour.NM(2, 4))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ajour.save(ajour.convert(model, hand_plan(model)), tmp_path / "y.safetensors")
    found = ajour.read(tmp_path / "y.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert torch.equal(found["bn.weight"] != 0, kept)


def test_pruned_norms_and_projections_of_three_dimensions_are_read_exactly(tmp_path: Path) -> None:
    q, norm = torch.randn(16, 4, 8), torch.randn(16)
    masks = torch.rand(16, 4, 8) < 0.9, torch.rand(16) < 0.9
    state = {
        "q.weight_orig": q,
        "q.weight_mask": masks[0].float(),
        "n.weight_orig": norm,
        "n.weight_mask": masks[1].float(),
    }
    torch.save(state, tmp_path / "x.pt")
    found = ajour.read(tmp_path / "x.pt")
    assert torch.equal(found["q.weight"], q * masks[0])
    assert torch.equal(found["n.weight"], norm * masks[1])
