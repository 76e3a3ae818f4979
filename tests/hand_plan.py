"""A plan that nobody measured: every layer in its most useful pattern, on a named kernel."""

from __future__ import annotations

from torch import nn

from ajour.detect import detect
from ajour.layers import find_layers
from ajour.planning.device import this_device
from ajour.planning.plan import Choice, Plan, RowChoice
from ajour.terms.pattern import NM, Block, Dense, Pattern


def op_for(pattern: Pattern) -> str:
    """The op that stores this pattern; "" for dense."""
    kinds = {NM: "nm_linear", Block: "block_linear", Dense: ""}
    return kinds.get(type(pattern), "bitmap_linear")


def hand_plan(model: nn.Module, kernel: str = "reference", limit: int | None = None) -> Plan:
    """`kernel` for every sparse layer, up to `limit` rows if given, and aten above."""
    choices = []
    for layer in find_layers(model):
        dtype = str(layer.dtype).removeprefix("torch.")
        choice = Choice(layer.name, layer.shape, dtype, reason=layer.reason or "by hand")
        if layer.reason is None and (op := op_for(pattern := detect(layer.weight()).pattern)):
            kernels = (
                (RowChoice(None, kernel),) if limit is None else (RowChoice(limit, kernel), RowChoice(None, "aten"))
            )
            choice = Choice(layer.name, layer.shape, dtype, pattern, 0.5, op, pattern, kernels, reason="by hand")
        choices.append(choice)
    return Plan(tuple(choices), this_device())
