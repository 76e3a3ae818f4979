"""load: a saved file into a model of the same skeleton, checked before anything changes."""

from __future__ import annotations

from contextlib import ExitStack
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ajour.conversion.converting import convert
from ajour.conversion.fast_path import bypassing, switch_off, switch_on
from ajour.conversion.recorded import record_plan
from ajour.conversion.swap import Swap
from ajour.importers.saved import Saved, read_saved
from ajour.io.permuted import wrap_permuted
from ajour.io.skeleton import Place, find_places, others_of, value_of
from ajour.nn import SparseLinear, linear_of
from ajour.ops.prepare import Choice as KernelChoice
from ajour.planning.plan import Plan, refuse_text
from ajour.terms.errors import AjourError, FileError, PlanError


def load(path: str | PathLike[str], model: nn.Module, *, plan: Plan | Any = None) -> nn.Module:
    """Fills a model with what `ajour.save` wrote, in place, its converted layers included, and returns it.

    model: of the same skeleton as the one that was saved: dense (what its weights hold does not matter), converted, or
           on the meta device, whose tensors then stand on the CPU. A model that is itself one layer is returned as the
           new layer.
    plan:  None takes the file's own plan, which holds on the kind of device that it was measured on. Elsewhere give a
           Plan for this model measured here, or an example of the model's inputs, for which one is made.

    Every index, shape and dtype is checked before anything of the model changes. Raises FileError for a file that is
    damaged, of a future version or of another model, PlanError for a plan of another model or kind of device.
    """
    with torch.inference_mode(False):  # what is made here stays: its tensors must be of use outside, too
        return _load(path, model, plan)


def _load(path: str | PathLike[str], model: nn.Module, plan: Plan | Any) -> nn.Module:
    refuse_text(plan)
    saved = read_saved(path)
    trainable = any(layer.trainable for layer in saved.layers.values())
    with torch.no_grad(), ExitStack() as unwrapping:
        model = wrap_permuted(saved, model, unwrapping)
        places = find_places(saved, model)
        chosen = _plan(saved, plan, places)
        biases: dict[int, nn.Parameter] = {}  # by what they replace: tied ones stay tied
        built = [(place, _build(saved, place, chosen, biases)) for place in places]
        others = {name: (held, value_of(saved, name)) for name, held in others_of(saved, model).items()}
        with ExitStack() as undo:
            for place, sparse in built:
                swap = Swap(model, place.layer, sparse, place.fusion)
                undo.callback(swap.undo)
                swap.apply()
                model = model if place.layer.name else sparse
            for module in bypassing(model):
                undo.callback(switch_on, module)
                switch_off(module)
            fresh = _fresh(others, biases)
            undo.pop_all()
        unwrapping.pop_all()
        _fill(model, others, fresh)
    record_plan(model, chosen)
    if plan is None or isinstance(plan, Plan):
        return model
    from ajour.planning.planner import plan as make_plan  # planning is slow to import, and rarely wanted here

    return convert(model, make_plan(model, plan, trainable=trainable), trainable=trainable)


def _plan(saved: Saved, plan: Any, places: list[Place]) -> Plan | None:
    """The plan to build by; None where one is made from an example afterwards, or there is nothing to plan."""
    given = isinstance(plan, Plan)
    if not given and plan is not None:
        return None
    if not places and not saved.plan:
        return None
    chosen: Plan = plan if given else _own_plan(saved)
    for device in {_target(place) for place in places}:
        if refusal := chosen.why_not_device(device):
            wanted = "" if given else f"{saved.path}: "
            raise PlanError(f"{wanted}{refusal}; give load a plan= made here, or plan=an example to plan anew")
    for place in places:
        choice = chosen[place.layer.name]
        held = place.saved
        if (choice.op, choice.stored) != (held.op, held.matrix.pattern):
            same = choice.stored == held.matrix.pattern  # in two formats
            mine, theirs = (choice.op, held.op) if same else (choice.stored or "dense", held.matrix.pattern)
            raise PlanError(
                f"layer {place.layer.name!r}: the plan stores it as {mine}, {saved.path} as {theirs}; plan for the "
                "model in the file"
            )
    return chosen


def _own_plan(saved: Saved) -> Plan:
    try:
        return Plan.from_json(saved.plan)
    except PlanError as error:
        raise FileError(f"{saved.path}: its plan is damaged: {error}") from None


def _target(place: Place) -> torch.device:
    return torch.device("cpu") if place.layer.device.type == "meta" else place.layer.device


def _build(saved: Saved, place: Place, plan: Plan | None, biases: dict[int, nn.Parameter]) -> SparseLinear:
    held, name = place.saved, place.layer.name
    choices: list[KernelChoice] | None = None
    if plan is not None:
        choices = [(entry.limit, entry.kernel, entry.config) for entry in plan[name].kernels]
    device = _target(place)
    bias = None if held.bias is None else _bias(place, held.bias.to(device), biases)
    try:
        return linear_of(
            held.matrix.to(device), bias, choices=choices, activation=held.activation, trainable=held.trainable
        )
    except AjourError as error:
        raise PlanError(
            f"layer {name!r}: {error}; give load a plan= made here, or plan=an example to plan anew"
        ) from error


def _bias(place: Place, value: Tensor, biases: dict[int, nn.Parameter]) -> nn.Parameter:
    own = place.layer.module._parameters.get("bias")
    if own is None:  # a mask made it
        return nn.Parameter(value, requires_grad=place.saved.trainable)
    return biases.setdefault(id(own), nn.Parameter(value, requires_grad=own.requires_grad))


def _fresh(others: dict[str, tuple[Tensor, Tensor]], biases: dict[int, nn.Parameter]) -> dict[int, Tensor]:
    """What replaces tensors that can't be written, on the meta device or of inference mode, and biases of new layers.

    One for one, so tied ones stay tied and the others share no memory.
    """
    made: dict[int, Tensor] = dict(biases)
    taken: set[int] = set()
    for held, value in others.values():
        if (held.is_meta or held.is_inference()) and id(held) not in made:
            own = value.clone() if id(value) in taken else value
            own = own if held.is_meta else own.to(held.device)
            taken.add(id(value))
            is_parameter = isinstance(held, nn.Parameter)
            made[id(held)] = nn.Parameter(own, requires_grad=held.requires_grad) if is_parameter else own
    return made


def _fill(model: nn.Module, others: dict[str, tuple[Tensor, Tensor]], fresh: dict[int, Tensor]) -> None:
    for name, (held, value) in others.items():
        if id(held) not in fresh:
            held.copy_(value)
            continue
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        places: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
        places[leaf] = fresh[id(held)]
