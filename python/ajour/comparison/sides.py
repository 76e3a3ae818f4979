"""The models that are compared: stock, compiled, on the best dense kernels, converted."""

from __future__ import annotations

import copy
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ajour.conversion import convert
from ajour.planning.plan import Plan
from ajour.planning.rows import call

STOCK, COMPILED, DENSE, CONVERTED = "stock", "compiled", "dense", "converted"
LABELS = {STOCK: "torch as it is", COMPILED: "torch.compile", DENSE: "best dense kernels", CONVERTED: "converted"}
COMPILING = 300.0  # seconds after which no further size is compiled
RECOMPILED = 4  # times that one function may be compiled for each size
# what torch.compile raises without a compiler, or for a model that it can't take
UNCOMPILED = (RuntimeError, OSError, ImportError, NotImplementedError, TypeError, subprocess.SubprocessError)


def make_sides(
    model: nn.Module,
    examples: Sequence[Any],
    plan: Plan,
    best_dense: Plan,
    *,
    compiled: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """(models by side, in the order of LABELS; notes on what is missing). The model itself stays as it is."""
    models, notes = {STOCK: model}, []
    if compiled:
        tell("torch.compile, which is at work and can take minutes")
        reason = _compile(model, examples, models)
        notes += [f"torch.compile is left out: {reason}"] if reason else []
    models[DENSE] = convert(copy.deepcopy(model), best_dense)
    models[CONVERTED] = convert(copy.deepcopy(model), plan)
    return models, tuple(notes)


def _compile(model: nn.Module, examples: Sequence[Any], models: dict[str, nn.Module]) -> str | None:
    """Adds the compiled model, for exactly these sizes, if COMPILING seconds are enough; else why not."""
    torch.compiler.reset()  # shapes that an earlier comparison has seen count against torch's limit
    wrapped: Any = torch.compile(model, dynamic=False)
    try:
        # beyond this limit torch would run a size as it is, and say nothing
        with torch._dynamo.config.patch(recompile_limit=RECOMPILED * len(examples)):
            begin = time.monotonic()
            for done, inputs in enumerate(examples):
                if (spent := time.monotonic() - begin) > COMPILING:
                    return f"after {spent:.0f} s it had compiled {done} of {len(examples)} sizes"
                call(wrapped, inputs)
    except UNCOMPILED as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines[0] if lines else type(error).__name__)[:200]
    models[COMPILED] = wrapped
    return None
