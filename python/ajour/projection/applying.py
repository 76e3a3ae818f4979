"""A projection made real: all of it checked first, then layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ajour.layer_choice import LayerChoice, choose_layers, stored_parameter, write_weight
from ajour.layers import Layer, find_layers, is_conv1d
from ajour.nn.permuted import Permuted
from ajour.projection.choosing import kept_places
from ajour.projection.energy import lost_energy, scored
from ajour.projection.producers import find_producers
from ajour.terms.errors import ConversionError

if TYPE_CHECKING:
    from ajour.projection.report import LayerProjection, Projection


@torch.no_grad()
def apply(report: Projection, model: nn.Module, layers: LayerChoice | None) -> nn.Module:
    """See Projection.apply."""
    jobs = list(_jobs(report, model, layers))
    producers = find_producers(model) if any(row.producer for _, row in jobs) else {}
    for layer, row in jobs:
        if row.producer is not None and producers.get(row.name) != row.producer:
            raise ConversionError(f"layer {row.name!r}: {row.producer} no longer feeds it alone; project again")
        _projected(report, layer, row)
    found = {layer.name: layer for layer in find_layers(model)}
    for layer, row in jobs:
        w = _projected(report, layer, row)
        if row.order is None:
            write_weight(layer, w)
            continue
        order = torch.tensor(row.order, device=w.device)
        if row.producer is None:
            model = _wrap(model, layer, w, order)
            continue
        write_weight(layer, w[:, order])
        first = model.get_submodule(row.producer)
        inside = first.layer if isinstance(first, Permuted) else first
        _put_rows_in_order(replace(found[row.producer], module=inside), order)
    return model


def _jobs(report: Projection, model: nn.Module, layers: LayerChoice | None) -> Iterator[tuple[Layer, LayerProjection]]:
    known = {row.name: row for row in report.layers}
    found = find_layers(model)
    wanted = choose_layers(found, layers) if layers is not None else [x for x in found if x.name in known]
    for layer in wanted:
        row = known.get(layer.name)
        if row is None:
            raise ConversionError(f"layer {layer.name!r} is not in this report; project it too")
        if row.reason is None and not row.fits:
            yield layer, row
    missing = sorted(known.keys() - {layer.name for layer in found})
    if missing:
        raise ConversionError(f"the report is of another model: {missing[0]!r} is not in this one")


def _projected(report: Projection, layer: Layer, row: LayerProjection) -> Tensor:
    """The weight with its zeros, features in their own order; ConversionError unless it costs what the report says."""
    shape, dtype = layer.shape, str(layer.dtype).removeprefix("torch.")
    if (layer.reason, shape, dtype) != (None, row.shape, row.dtype):
        was, here = (f"{'x'.join(map(str, s))} {d}" for s, d in ((row.shape, row.dtype), (shape, dtype)))
        raise ConversionError(f"layer {row.name!r}: {layer.reason or f'the report saw {was}, here it is {here}'}")
    w = layer.weight()
    live = w != 0
    order = None if row.order is None else torch.tensor(row.order, device=w.device)
    kept = kept_places(scored(w, report.scales.get(row.name)), live, report.pattern, report.lose, order)
    if int(live.sum() - kept.sum()) != row.dropped or lost_energy(w, kept) != row.energy_lost:
        raise ConversionError(f"layer {row.name!r} has changed since the report was made; project again")
    return torch.where(kept, w, 0)


def _wrap(model: nn.Module, layer: Layer, w: Tensor, order: Tensor) -> nn.Module:
    """A copy of the layer with the permuted weight stands behind the gather.

    The module that stood there keeps its features' own order, with the same zeros: who else holds it runs it without
    the gather.
    """
    write_weight(layer, w)
    twin = _twin(layer.module, w[:, order])
    path, _, leaf = layer.name.rpartition(".")
    above = model.get_submodule(path)
    if isinstance(above, Permuted):  # projected before: one gather does for both orders
        above.layer, above.ajour_order = twin, above.ajour_order[order]
        return model
    wrapped = Permuted(twin, order)
    if not layer.name:
        return wrapped
    above._modules[leaf] = wrapped
    return model


def _twin(module: nn.Module, w: Tensor) -> nn.Module:
    """A copy that shares all with the module but its weight: w [n, k]."""
    twin = copy(module)
    own = {name: held.copy() for name, held in vars(module).items() if isinstance(held, dict)}
    vars(twin).update(own)
    weight = module._parameters["weight"]
    assert weight is not None
    data = (w.t() if is_conv1d(module) else w).contiguous()
    twin._parameters["weight"] = nn.Parameter(data, requires_grad=weight.requires_grad)
    return twin


def _put_rows_in_order(producer: Layer, order: Tensor) -> None:
    weight = stored_parameter(producer)
    weight.copy_(weight[:, order] if is_conv1d(producer.module) else weight[order])
    bias = producer.module._parameters.get("bias")
    if bias is not None:
        bias.copy_(bias[order])
