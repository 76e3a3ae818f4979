"""compare: the latency of a whole model at several sizes, its sides interleaved, verified in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ajour.comparison.layer_times import break_down
from ajour.comparison.report import Comparison, Size
from ajour.comparison.sides import COMPILED, CONVERTED, LABELS, make_sides
from ajour.conversion.fast_path import has_fast_path
from ajour.memory import resident_bytes
from ajour.planning.device import OtherWork
from ajour.planning.plan import Plan
from ajour.planning.planner import plan as make_plan
from ajour.planning.rows import call, untouched
from ajour.planning.timing import Side, cpu_timer, measure, remedy
from ajour.verification import verify

SECONDS = 2.0  # of timing for each size


def compare(
    model: nn.Module,
    examples: Mapping[str, Any],
    *,
    name: str = "",
    plan: Plan | None = None,
    rows: Sequence[int] | None = None,
    compiled: bool = True,
    seconds: float = SECONDS,
    progress: bool = True,
) -> Comparison:
    """Times the model as torch runs it, compiled, on its best dense kernels, and converted; it stays as it is.

    examples: inputs by the name of their size, like {"8x32": ...}. plan: else one is made, for these or for `rows`.
    compiled: torch.compile joins, if it can. seconds: of timing for each size.

    Medians of interleaved rounds; the converted model is verified at every size, and where each side's time goes is
    measured in passes of their own. Raises what plan, convert and verify raise.
    """
    from ajour.planning.progress import bar

    inputs, others = list(examples.values()), OtherWork()
    plan = plan or make_plan(model, inputs, rows=rows, progress=progress)
    best_dense = make_plan(model, inputs, rows=rows, formats=(), progress=progress)
    with untouched(model), torch.inference_mode(), bar(progress, 2 * len(examples) + 2) as (tell, advance):
        models, missing = make_sides(model, inputs, plan, best_dense, compiled=compiled, tell=tell)
        advance()
        tell("the errors of the converted model")
        report = verify(models[CONVERTED], model, inputs)
        advance()
        sizes = [_size(label, each, models, plan, seconds, tell, advance) for label, each in examples.items()]
    notes = list(missing)
    if unsteady := {LABELS[side]: None for size in sizes for side in size.unsteady}:
        do = remedy(torch.get_num_threads())
        notes.append(f"times of {', '.join(unsteady)} are unsteady, so only what is certain is told; {do}")
    if busy := others.warning():
        notes.append(busy)
    if has_fast_path(model):
        notes.append("torch's fast path of TransformerEncoder has no layers to time: where its time goes is without it")
    held = {side: resident_bytes(each) for side, each in models.items() if side != COMPILED}
    return Comparison(name, plan, tuple(sizes), held, report, tuple(notes))


def _size(
    label: str,
    inputs: Any,
    models: Mapping[str, nn.Module],
    plan: Plan,
    seconds: float,
    tell: Callable[[str], None],
    advance: Callable[[], None],
) -> Size:
    tell(f"{', '.join(LABELS[side] for side in models)} at {label}")
    timed = measure(
        [Side(side, [_caller(each, inputs)]) for side, each in models.items()],
        cpu_timer, seconds=seconds, give_up=False,
    )  # fmt: skip
    advance()
    tell(f"where the time goes at {label}")
    layers = [choice.layer for choice in plan.choices]
    where = {side: break_down(each, layers, inputs) for side, each in models.items() if side != COMPILED}
    advance()
    return Size(label, dict(zip(models, timed, strict=True)), where)


def _caller(model: nn.Module, inputs: Any) -> Callable[[], object]:
    def run_once() -> object:
        y = call(model, inputs)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return y

    return run_once
