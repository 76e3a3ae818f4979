"""Masked optimizers on a GPU: every kernel against float64, and the same bits every time."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from ajour.ops.masked_update import reference
from ajour.ops.masked_update.op import MASKED_ADAMW
from ajour.ops.masked_update.update import Update
from ajour.terms.errors import KernelError
from ajour.train import MaskedAdamW, MaskedSGD
from masked import Reference, assert_held, small
from updates import CASES, assert_alike, copied, update

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def moved(given: Update, device: str) -> Update:
    """The same update on another device."""

    def there(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(device)

    slices = [
        replace(
            piece,
            weight=piece.weight.to(device),
            bits=there(piece.bits),
            offsets=there(piece.offsets),
            states=tuple(state.to(device) for state in piece.states),
            master=there(piece.master),
        )
        for piece in given.slices
    ]
    return replace(given, slices=slices, grads=[grad.to(device) for grad in given.grads])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_does_what_float64_does_in_small(case: str, dtype: torch.dtype) -> None:
    kernels = [k for k in MASKED_ADAMW.kernels.values() if k.name != "reference" and k.why_not("cuda", dtype) is None]
    assert kernels
    for compact, master, density in product((False, True), (False, True), (0.05, 0.5, None)):
        made = update(case, dtype, compact=compact, master=master, density=density)
        wanted = copied(made)
        reference.run(wanted)
        for kernel in kernels:
            found = []
            for _ in range(2):
                mine = moved(made, "cuda")
                kernel.run(mine)
                found.append(moved(mine, "cpu"))
                assert_alike(found[-1], wanted, made)
            for a, b in zip(found[0].slices, found[1].slices, strict=True):
                assert torch.equal(a.weight.view(torch.uint8), b.weight.view(torch.uint8)), f"{kernel.name} differs"


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("kernel", ["cuda", "triton"])
@pytest.mark.parametrize(("kind", "options"), [(MaskedAdamW, {}), (MaskedSGD, {"momentum": 0.9})])
def test_a_captured_step_obeys_the_rate_and_counts_the_steps_of_every_replay(
    kind: type, options: dict[str, float], kernel: str, storage: str
) -> None:
    model, masks = small()
    reference = Reference(model, masks, kind, options | {"lr": 1e-2})
    model, masks = model.cuda(), masks.to("cuda")
    lr = torch.tensor(1e-2, device="cuda")
    mine = kind(
        model.named_parameters(), masks, lr=lr, weight_decay=0.0, capturable=True, storage=storage, kernel=kernel,
        **options,
    )  # fmt: skip
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    graph = torch.cuda.CUDAGraph()
    for turn, rate in enumerate((1e-2, 1e-2, 3e-3, 3e-2)):
        grads = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.grad.copy_(grads[name])
        lr.fill_(rate)
        reference.optimizer.param_groups[0]["lr"] = rate
        if turn == 0:
            mine.step()
        else:
            if turn == 1:
                with torch.cuda.graph(graph):
                    mine.step()
            graph.replay()
        reference.step(grads, None)
    assert_held(model.cpu(), masks.to("cpu"))
    reference.assert_near(model)
    assert [int(state["step"]) for state in mine.state.values()] == [4] * 4


def test_a_step_whose_gradients_have_moved_is_not_captured() -> None:
    model, masks = small()
    mine = MaskedAdamW(model.cuda().named_parameters(), masks.to("cuda"), capturable=True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    mine.step()
    kept = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with (
        pytest.raises(KernelError, match="tensors have moved since the last step"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        mine.step()
    del kept
