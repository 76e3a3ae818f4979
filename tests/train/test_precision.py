"""Masters, stochastic rounding and the bytes that a compact state takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ajour.train import MaskedAdamW, MaskedSGD, Masks
from masked import assert_held, small


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_master_keeps_what_bfloat16_loses(storage: str) -> None:
    found = {}
    for master, stochastic in ((False, False), (True, False), (False, True)):
        torch.manual_seed(3)
        model, masks = small()
        model = model.to(torch.bfloat16)
        optimizer = MaskedSGD(
            model.named_parameters(), masks, lr=1e-4, storage=storage, master=master, stochastic_rounding=stochastic
        )
        start = model[0].weight.detach().float().clone()
        for _ in range(200):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
        assert_held(model, masks)
        moved = (start - model[0].weight.detach().float())[masks["0.weight"].dense() & (start.abs() > 0.05)]
        found[master, stochastic] = moved.mean().item()
    assert abs(found[False, False]) < 0.002, "each step of 1e-4 is rounded away"
    assert found[True, False] == pytest.approx(0.02, rel=0.02)
    assert found[False, True] == pytest.approx(0.02, rel=0.1)


def test_stochastic_rounding_can_be_repeated() -> None:
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model, masks = small()
        model = model.to(torch.bfloat16)
        optimizer = MaskedAdamW(model.named_parameters(), masks, stochastic_rounding=True, seed=seed)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_compact_state_is_eight_bytes_for_each_kept_entry_and_twelve_with_a_master() -> None:
    model = nn.Linear(1024, 1024, bias=False)
    for dtype, master, most in ((torch.float32, False, 8), (torch.bfloat16, False, 8), (torch.bfloat16, True, 12)):
        weight = nn.Parameter(model.weight.detach().to(dtype))
        masks = Masks.from_tensors({"weight": torch.rand(1024, 1024) < 0.1})
        optimizer = MaskedAdamW([("weight", weight)], masks, storage="compact", master=master)
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        state = {name: t for name, t in optimizer.state[weight].items() if name not in ("mask", "step")}
        assert sum(t.nbytes for t in state.values()) == most * masks["weight"].kept
        assert optimizer.state[weight]["mask"].data_ptr() == masks["weight"].bits.data_ptr(), "no second copy"
