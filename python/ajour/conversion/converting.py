"""convert: swaps a model's layers as a plan says, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ajour.conversion.fast_path import bypassing, switch_off, switch_on
from ajour.conversion.fusion import Fusion, find_fusions
from ajour.conversion.recorded import record_plan
from ajour.conversion.seclusion import kept_elsewhere
from ajour.conversion.swap import Swap
from ajour.formats.matrix import SparseMatrix
from ajour.layers import Layer, find_layers
from ajour.nn import SparseLinear, linear_of
from ajour.nn.selection import why_not
from ajour.ops import LINEAR_OPS
from ajour.ops.prepare import Choice as KernelChoice
from ajour.planning.plan import Choice, Plan, refuse_text
from ajour.terms.errors import AjourError, ConversionError, PlanError
from ajour.terms.pattern import Block


@dataclass(frozen=True)
class _Job:
    layer: Layer
    choice: Choice
    fusion: Fusion | None
    activation: str


def convert(model: nn.Module, plan: Plan | Any, *, fuse: bool = True, trainable: bool = False) -> nn.Module:
    """Swaps the layers that the plan has an op for, in place, and returns the model.

    plan:      a Plan, or an example of the model's inputs, for which one is made first, for training if `trainable`.
    fuse:      an activation that provably follows a layer directly, and that no other class of the model sees, is
               folded into it; a part called on its own afterwards (`model[0](x)`) includes it. Where the layer or
               what stands for the activation is replaced in its place later on, the model computes what it then says.
    trainable: the new layers hold values that require gradients, whatever the old weights did, and run through kernels
               that read these as they are: blocks through compiled ones or Triton's, other patterns through
               `reference`, which holds their zeros but saves no time: a step of 128 rows through 3072 x 768 in 2:4
               takes 30 ms, 18 dense (Zen 5, float32). A plan for training (`plan(..., trainable=True)`) has measured
               these kernels and names a configuration for each product; of one for inference only the pattern counts.
               Layers that the plan keeps dense stay what they are, what it splits is a bitmap, and what it stores in
               coarser blocks than it found is stored in those: training would fill the zeros between.

    Every swap is checked before the first one is made, and any failure leaves the model as it was, bit for bit.
    Parameters are replaced: build optimizers after converting, and don't keep a layer or a weight outside the model, as
    its dense values are freed. A model that is itself one layer is returned as the new
    layer. Fast paths of nn.TransformerEncoder, which never call their layers, are switched off.

    Raises PlanError for a plan made for another model or kind of device, ConversionError, naming the layer, for a swap
    that can't be made.
    """
    refuse_text(plan)
    if not isinstance(plan, Plan):
        from ajour.planning.planner import plan as make_plan  # planning is slow to import, and rarely wanted here

        plan = make_plan(model, plan, trainable=trainable)
    with torch.inference_mode(False), torch.no_grad():
        jobs = list(_checked(model, plan, fuse, trainable))
        with ExitStack() as undo:
            for job in jobs:
                swap = Swap(model, job.layer, _build(job, trainable), job.fusion, rebuilds=True)
                undo.callback(swap.undo)
                swap.apply()
                model = swap.sparse if not job.layer.name else model
            for module in bypassing(model):
                undo.callback(switch_on, module)
                switch_off(module)
            undo.pop_all()
    record_plan(model, plan)
    return model


def _checked(model: nn.Module, plan: Plan, fuse: bool, trainable: bool) -> Iterator[_Job]:
    """What there is to do, every swap tried on a matrix that is dropped again."""
    layers = {layer.name: layer for layer in find_layers(model)}
    if refusal := plan.why_not_model(layers.values()):
        raise PlanError(f"this plan was made for another model: {refusal}")
    fusions = find_fusions(model) if fuse else {}
    chosen = [choice for choice in plan.choices if choice.op and not (trainable and choice.op == "dense_linear")]
    for device in {layers[choice.layer].device for choice in chosen}:
        if refusal := plan.why_not_device(device):
            raise PlanError(f"this plan is for another kind of device: {refusal}")
    elsewhere = kept_elsewhere(model)
    for choice in chosen:
        layer = layers[choice.layer]
        if (place := elsewhere.get(id(layer.module))) and not isinstance(layer.module, SparseLinear):
            raise ConversionError(
                f"layer {layer.name!r} also stands in the plain attribute {place!r}, where it would not be swapped and "
                "would be left without its weight; read it from its own place, or register it there too "
                "(nn.ModuleList), which keeps it dense"
            )
        if layer.reason is not None:
            raise ConversionError(f"layer {layer.name!r} can't be converted: {layer.reason}")
        choice = _without_zeros(choice) if trainable else choice
        yield _job(layer, choice, fusions.get(layer.name))


def _without_zeros(choice: Choice) -> Choice:
    """The choice with no explicit zeros to train: bitmaps for split weights, the blocks found for coarser ones."""
    stored, found = choice.stored, choice.pattern
    if choice.op == "split_linear":
        return replace(choice, op="bitmap_linear")
    if isinstance(stored, Block) and isinstance(found, Block):
        divides = found.rows % stored.rows == 0 and found.cols % stored.cols == 0
        return choice if divides else replace(choice, stored=found)
    return choice


def _job(layer: Layer, choice: Choice, fusion: Fusion | None) -> _Job:
    matrix = _matrix(layer, choice)
    own = layer.module.activation if isinstance(layer.module, SparseLinear) else "none"
    op, kernels = LINEAR_OPS[choice.op], _kernels(choice)
    try:
        if fusion is not None and own == "none" and why_not(op, matrix, fusion.activation, kernels) is None:
            return _Job(layer, choice, fusion, fusion.activation)
        refusal = why_not(op, matrix, own, kernels)
    except AjourError as error:
        refusal = str(error)
    if refusal is not None:
        raise ConversionError(f"layer {layer.name!r}: {refusal}; plan again on this device")
    return _Job(layer, choice, None, own)


def _matrix(layer: Layer, choice: Choice) -> SparseMatrix:
    op = LINEAR_OPS.get(choice.op)
    if op is None or choice.stored is None:
        raise PlanError(f"layer {layer.name!r}: the plan names the op {choice.op!r}; there are {', '.join(LINEAR_OPS)}")
    try:
        return op.matrix.from_dense(layer.weight(), choice.stored)
    except AjourError as error:
        raise ConversionError(
            f"layer {layer.name!r}: the plan stores its weight as {choice.stored}, which does not hold it: {error}; "
            "plan again for this model"
        ) from error


def _kernels(choice: Choice) -> list[KernelChoice]:
    return [(entry.limit, entry.kernel, entry.config) for entry in choice.kernels]


def _build(job: _Job, trainable: bool) -> SparseLinear:
    return linear_of(
        _matrix(job.layer, job.choice),
        bias_of(job.layer),
        choices=_kernels(job.choice),
        activation=job.activation,
        trainable=trainable,
    )


def bias_of(layer: Layer) -> nn.Parameter | None:
    """The bias for a layer's successor: the very parameter, or a copy where a mask is applied to it."""
    parameters = layer.module._parameters
    own, pruned, bias = parameters.get("bias"), parameters.get("bias_orig"), layer.bias()
    if own is not None or bias is None:
        return own
    return nn.Parameter(bias.clone(), requires_grad=pruned is not None and pruned.requires_grad)
