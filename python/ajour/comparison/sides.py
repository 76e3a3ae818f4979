"""The models that are compared: stock, compiled, on the best dense kernels, converted."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ajour.conversion import convert
from ajour.planning.plan import Plan
from ajour.planning.planner import plan as make_plan
from ajour.planning.rows import call

STOCK, COMPILED, DENSE, CONVERTED = "stock", "compiled", "dense", "converted"
LABELS = {STOCK: "torch as it is", COMPILED: "torch.compile", DENSE: "best dense", CONVERTED: "converted"}
# what torch.compile raises without a compiler, or for a model that it can't take
UNCOMPILED = (RuntimeError, OSError, ImportError, NotImplementedError, TypeError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Sides:
    """models by side, in the order of LABELS; the plan that the converted one follows; notes on what is missing."""

    models: dict[str, nn.Module]
    plan: Plan
    notes: tuple[str, ...] = ()


def make_sides(
    model: nn.Module,
    examples: Sequence[Any],
    *,
    plan: Plan | None,
    rows: Sequence[int] | None,
    compiled: bool,
    progress: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> Sides:
    """All sides of a model, which stays as it is; one that can't be made is left out with a note."""
    tell("every layer, dense against sparse")
    made = plan or make_plan(model, list(examples), rows=rows, progress=progress)
    models, notes = {STOCK: model}, []
    if compiled:
        tell("torch.compile at work, which can take minutes")
        reason = _compile(model, examples, models)
        notes += [f"torch.compile is left out: {reason}"] if reason else []
    tell("the best dense kernel of every layer")
    best = make_plan(model, list(examples), rows=rows, formats=(), progress=False)
    models[DENSE] = convert(copy.deepcopy(model), best)
    models[CONVERTED] = convert(copy.deepcopy(model), made)
    return Sides(models, made, tuple(notes))


def _compile(model: nn.Module, examples: Sequence[Any], models: dict[str, nn.Module]) -> str | None:
    """Adds the compiled model, for exactly these sizes; else why not."""
    torch.compiler.reset()  # shapes that an earlier comparison has seen count against torch's limit
    wrapped: Any = torch.compile(model, dynamic=False)
    try:
        for inputs in examples:
            call(wrapped, inputs)
    except UNCOMPILED as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines[0] if lines else type(error).__name__)[:200]
    models[COMPILED] = wrapped
    return None
