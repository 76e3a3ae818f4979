"""A capturable step has its learning rate and its count in tensors, and never waits to read one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ajour.ops.masked_update.update import Update
from ajour.train import MaskedAdamW, MaskedSGD
from ajour.train.optimizer import MaskedOptimizer
from masked import Reference, assert_held, small

KINDS: dict[str, tuple[type[MaskedOptimizer], dict[str, Any]]] = {
    "adamw": (MaskedAdamW, {}),
    "amsgrad": (MaskedAdamW, {"amsgrad": True}),
    "nesterov": (MaskedSGD, {"momentum": 0.9, "nesterov": True}),
    "sgd": (MaskedSGD, {"dampening": 0.0}),
}
READS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "item", "masked_select", "unique")


class Unread(TorchDispatchMode):
    """Raises where a value would have to come back from the device; `off` while a stand-in for a device works."""

    off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert self.off or name not in READS, f"a capturable step called {name}, which waits for the device"
        return func(*args, **(kwargs or {}))

    def watched(self, name: str) -> Callable[..., Any]:
        """A method of Tensor that raises as well."""
        method = getattr(Tensor, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            assert self.off, f"a capturable step called {name}, which waits for the device"
            return method(*args, **kwargs)

        return call


def guarded(optimizer: MaskedOptimizer, guard: Unread) -> list[Update]:
    """Lets the optimizer's kernel work outside of the guard, as a device would; the updates that it was given."""
    given: list[Update] = []
    run: Callable[[Update], None] = next(iter(optimizer._held.values())).kernel.run

    def on_device(update: Update) -> None:
        given.append(update)
        guard.off = True
        run(update)
        guard.off = False

    for held in optimizer._held.values():
        held.kernel = replace(held.kernel, run=on_device)
    return given


def made(kind: str, lr: Tensor, storage: str) -> tuple[MaskedOptimizer, Reference, dict[str, Tensor]]:
    model, masks = small()
    optimizer, options = KINDS[kind]
    reference = Reference(model, masks, optimizer, options | {"lr": float(lr)})
    mine = optimizer(
        model.named_parameters(), masks, lr=lr, weight_decay=0.0, capturable=True, storage=storage, **options
    )
    return mine, reference, dict(model.named_parameters())


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_changes_in_its_tensor_is_obeyed_and_the_count_stays_in_place(kind: str, storage: str) -> None:
    lr = torch.tensor(1e-2)
    mine, reference, parameters = made(kind, lr, storage)
    counts = []
    for turn, rate in enumerate((1e-2, 1e-2, 0.0, 3e-2)):
        lr.fill_(rate)
        reference.optimizer.param_groups[0]["lr"] = rate
        grads = {name: torch.randn_like(p) for name, p in parameters.items()}
        before = [p.detach().clone() for p in parameters.values()]
        for name, p in parameters.items():
            p.grad = grads[name]
        mine.step()
        reference.step(grads, None)
        steps = [mine.state[p]["step"] for p in parameters.values()]
        assert [int(step) for step in steps] == [turn + 1] * 4
        counts.append([(step.data_ptr(), id(step)) for step in steps])
        moved = [not torch.equal(p.detach(), old) for p, old in zip(parameters.values(), before, strict=True)]
        assert moved == [rate > 0] * 4
    assert counts.count(counts[0]) == 4, "a captured graph would go on counting where the first step was"
    for wanted, found in zip(reference.model.parameters(), parameters.values(), strict=True):
        torch.testing.assert_close(found.detach().double(), wanted.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_back(kind: str, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, _, parameters = made(kind, torch.tensor(1e-2), storage)
    for p in parameters.values():
        p.grad = torch.randn_like(p)
    mine.step()  # makes the states, and may read what it likes
    mine.grad_scale, mine.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    guard = Unread()
    given = guarded(mine, guard)
    mine._prepared = None  # its launches hold the kernels that are not guarded
    weight = mine.param_groups[0]["params"][0]
    for inf in (0.0, 1.0, 0.0):
        mine.found_inf.fill_(inf)
        old = weight.detach().clone()
        with monkeypatch.context() as patch, guard:
            for name in ("tolist", "numpy", "cpu"):  # which the dispatcher does not see
                patch.setattr(Tensor, name, guard.watched(name))
            mine.step()
        assert torch.equal(old, weight.detach()) == bool(inf)
    assert int(mine.state[weight]["step"]) == 3, "a skipped step counts for nothing"
    assert len(given) == 3
    assert given[0].grad_scale is mine.grad_scale
    assert given[0].found_inf is mine.found_inf


def test_the_guard_would_see_a_read() -> None:
    mine, _, parameters = made("adamw", torch.tensor(1e-2), "dense")
    mine.defaults["capturable"] = False  # such a step asks whether there was an inf
    mine.grad_scale, mine.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    for p in parameters.values():
        p.grad = torch.randn_like(p)
    with pytest.raises(AssertionError, match="waits for the device"), Unread():
        mine.step()


def test_zeros_hold_and_states_say_where_they_are() -> None:
    model, masks = small()
    optimizer = MaskedAdamW(model.named_parameters(), masks, lr=torch.tensor(1e-2), capturable=True)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    for name, mask in masks.items():
        model.get_parameter(name).grad[mask.dense()] = 1.0
    optimizer.step()
    assert_held(model, masks)
    assert all(state["step"].device == p.device for p, state in optimizer.state.items())
