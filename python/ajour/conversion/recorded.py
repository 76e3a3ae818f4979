"""The plan that a model was converted by, kept on the model so that saving can write it down."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ajour.nn import SparseLinear
from ajour.planning.device import this_device
from ajour.planning.plan import Choice, Plan, RowChoice
from ajour.terms.row_table import parse_row_table

_KEY = "ajour_plan"


def record_plan(model: nn.Module, plan: Plan | None) -> None:
    """Keeps the plan on the model, outside its state; None forgets it."""
    vars(model).pop(_KEY, None)
    if plan is not None:
        vars(model)[_KEY] = plan


def plan_of(model: nn.Module) -> Plan | None:
    """The recorded plan, corrected where a layer is no longer what it says; None without plan and converted layers."""
    recorded: Plan | None = vars(model).get(_KEY)
    sparse = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
    known = {choice.layer: choice for choice in recorded.choices} if recorded is not None else {}
    choices = [
        _current(name, sparse[name], choice) if name in sparse else _kept(choice) for name, choice in known.items()
    ]
    choices += [_current(name, module, None) for name, module in sparse.items() if name not in known]
    if recorded is not None:
        return replace(recorded, choices=tuple(choices))
    return Plan(tuple(choices), this_device(next(iter(sparse.values())).device)) if sparse else None


def _current(name: str, module: SparseLinear, choice: Choice | None) -> Choice:
    """The choice, if it says what the layer does now."""
    entries = [(entry.limit, entry.kernel, entry.config) for entry in parse_row_table(module.kernels).entries]
    kernels = tuple(RowChoice(*entry) for entry in module.choices or entries)
    op, pattern, dtype = module.op.name, module.pattern, str(module.dtype).removeprefix("torch.")
    if choice is not None and (choice.op, choice.stored, choice.dtype, choice.kernels) == (op, pattern, dtype, kernels):
        return choice
    shape = (module.out_features, module.in_features)
    return Choice(
        name, shape, dtype, pattern, module.density, op, pattern, kernels, reason="named by hand, not measured"
    )


def _kept(choice: Choice) -> Choice:
    """The choice for a layer that is dense: as planned, or because it could not be converted after all."""
    if not choice.op:
        return choice
    reason = f"planned as {choice.stored}, kept dense"
    return replace(choice, op="", stored=None, kernels=(), sparse_bytes=choice.dense_bytes, reason=reason)
