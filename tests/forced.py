"""Models pruned at random and plans written by hand, so that a test says which kernel runs where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ajour.layers import find_layers
from ajour.ops.calls import count_calls
from ajour.planning.device import this_device
from ajour.planning.plan import Choice, Plan, RowChoice
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured
from pruned import keep_mask

OPS: dict[type, str] = {NM: "nm_linear", Block: "block_linear", Unstructured: "bitmap_linear", Dense: "dense_linear"}
Kernels = tuple[RowChoice, ...]
REFERENCE = (RowChoice(None, "reference"),)


def pruned(model: nn.Module, pattern: Pattern) -> nn.Module:
    """Prunes every convertible layer at random, in place, by multiplying with a mask (so half the zeros are -0.0)."""
    with torch.no_grad():
        for layer in find_layers(model):
            if layer.reason is None:
                mask = keep_mask(pattern, *layer.shape)
                weight = layer.module.weight
                assert isinstance(weight, Tensor)
                weight.mul_(mask.t() if layer.kind == "Conv1D" else mask)
    return model


def choice_for(
    name: str, shape: tuple[int, ...], pattern: Pattern, kernels: Kernels = REFERENCE, dtype: str = "float32"
) -> Choice:
    """One layer stored in the pattern."""
    return Choice(name, shape, dtype, pattern, 0.5, OPS[type(pattern)], pattern, kernels)


def plan_for(model: nn.Module, pattern: Pattern, kernels: Kernels = REFERENCE, skip: tuple[str, ...] = ()) -> Plan:
    """Every layer that can be converted, stored in the pattern; those whose name ends in one of `skip` are kept."""
    choices = []
    for layer in find_layers(model):
        dtype = str(layer.dtype).removeprefix("torch.")
        if layer.reason is not None or layer.name.endswith(skip or ("nothing is skipped",)):
            choices.append(Choice(layer.name, layer.shape, dtype, reason=layer.reason or "kept"))
        else:
            choices.append(choice_for(layer.name, layer.shape, pattern, kernels, dtype))
    return Plan(tuple(choices), this_device())


def state_of(model: nn.Module) -> dict[str, bytes]:
    """Every bit of a model: parameters, buffers, gradients, which classes stand where, and who each parameter is."""
    state = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        for what, t in (("", tensor), (".grad", tensor.grad)):
            if t is not None:
                state[name + what] = f"{t.dtype} {tuple(t.shape)} {t.requires_grad}".encode() + _bytes(t)
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "ajour_plan"}
        state[f"{name}()"] = f"{id(module)} {sorted(plain)} {[id(v) for v in plain.values() if callable(v)]}".encode()
    state["order"] = repr([id(p) for p in model.parameters()]).encode()
    return state


def _bytes(t: Tensor) -> bytes:
    return bytes(t.detach().contiguous().flatten().view(torch.uint8).tolist())


@contextmanager
def counting(**expected: int) -> Iterator[count_calls]:
    """Asserts how often each op ran; what is not named must not run."""
    with count_calls() as calls:
        yield calls
    assert dict(calls.ops) == expected, f"ops that ran: {dict(calls.ops)}, expected {expected}"
