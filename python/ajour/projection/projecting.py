"""project: what fitting a pattern would cost each layer; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ajour.conversion.origin import is_plain
from ajour.detect import detect
from ajour.layer_choice import LayerChoice, choose_layers
from ajour.layers import Layer, find_layers
from ajour.planning.rows import call, untouched, without_fast_paths
from ajour.projection.choosing import LOSE, kept_places
from ajour.projection.energy import lost_energy, scored
from ajour.projection.permutation import search
from ajour.projection.producers import find_producers
from ajour.projection.report import LayerProjection, Projection
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Dense, Pattern, as_pattern


def project(
    model: nn.Module,
    pattern: Pattern | str,
    example: Any = None,
    *,
    layers: LayerChoice | None = None,
    lose: float | None = None,
    calibrated: bool = False,
    permute: bool = False,
) -> Projection:
    """What it would cost to make every linear layer fit `pattern`: a report that changes nothing until `apply`.

    pattern:    or its name, like "2:4". NM keeps the `keep` largest weights of every group and leaves groups that fit
                as they are; of blocks and of scattered weights the weakest go, as many as lose at most `lose` of the
                layer's energy.
    example:    a tensor, a tuple of inputs, a mapping of named inputs, or a list of several of these: the report says
                how far each layer's output moves on them, in eval mode.
    layers:     a name or glob ("encoder.*"), several of them, or a callable (name, module) -> bool.
    lose:       0 to 1, the share of sum(w**2) that blocks and scattered weights may lose, 0.01 by default; an N:M
                pattern loses what it must.
    calibrated: weights count by |w| times the norm of their in feature over the example, not by |w| alone.
    permute:    look for an order of the in features in which an N:M pattern loses less. Applied, the rows of the layer
                before are put in that order where it provably feeds this one alone, else x is at run time.

    Raises PatternError if the settings don't go together, ConversionError for a layer that is named and can't be
    converted, or if nothing matches.
    """
    pattern = as_pattern(pattern)
    share = _checked(pattern, lose, permute, calibrated, example)
    found = find_layers(model)
    chosen = choose_layers(found, layers)
    producers = find_producers(model) if permute else {}
    with torch.no_grad():
        norms = _norms(model, chosen, example) if calibrated else {}
        tasks = [_Task.of(layer, pattern, share, norms, permute) for layer in chosen]
        errors = {} if example is None else _errors(model, tasks, example)
    rows = [task.row(errors.get(task.layer.name), producers.get(task.layer.name)) for task in tasks]
    named = {row.name for row in rows}
    rows += [
        LayerProjection(layer.name, layer.shape, str(layer.dtype).removeprefix("torch."), reason=layer.reason)
        for layer in found
        if layer.reason is not None and layer.name not in named and layers is None
    ]
    places = {layer.name: place for place, layer in enumerate(found)}
    rows.sort(key=lambda row: places[row.name])
    return Projection(pattern, tuple(rows), share, {task.layer.name: task.scale for task in tasks})


def _checked(pattern: Pattern, lose: float | None, permute: bool, calibrated: bool, example: Any) -> float:
    if isinstance(pattern, Dense):
        raise PatternError("dense is nothing to project to; expected NM, Block or Unstructured")
    if isinstance(pattern, NM) and lose is not None:
        raise PatternError(f"{pattern} loses what it must; lose= is for blocks and scattered weights")
    if permute and not isinstance(pattern, NM):
        raise PatternError(f"an order of in features is searched for N:M patterns, not for {pattern}")
    if calibrated and example is None:
        raise PatternError("calibrated weighs by what an example brings; give one")
    share = LOSE if lose is None else float(lose)
    if not 0 <= share <= 1:
        raise PatternError(f"lose is a share from 0 to 1, found {lose}")
    return share


@dataclass
class _Task:
    """One layer under way. scale: of each in feature's scores, or None; kept: bool [n, k]."""

    layer: Layer
    w: Tensor
    kept: Tensor | None
    scale: Tensor | None
    order: Tensor | None
    unpermuted: float | None
    reason: str | None

    @classmethod
    def of(cls, layer: Layer, pattern: Pattern, lose: float, norms: Mapping[str, Tensor], permute: bool) -> _Task:
        w, scale = layer.weight(), norms.get(layer.name)
        live = w != 0
        if not bool(w.isfinite().all()):
            return cls(
                layer, w, None, scale, None, None, "its weight holds NaN or Inf, which have no energy to compare"
            )
        scores = scored(w, scale)
        order, unpermuted = None, None
        kept = kept_places(scores, live, pattern, lose)
        if permute and isinstance(pattern, NM) and is_plain(layer) and not torch.equal(kept, live):
            unpermuted = lost_energy(w, kept)
            found = search(scores.square(), pattern)
            if found.after > found.before:
                order = found.order.to(w.device)
                kept = kept_places(scores, live, pattern, lose, order)
            else:
                unpermuted = None
        return cls(layer, w, kept, scale, order, unpermuted, None)

    def row(self, error: float | None, producer: str | None) -> LayerProjection:
        """What the report says of it."""
        n, k = self.layer.shape
        dtype, size = str(self.layer.dtype).removeprefix("torch."), max(1, n * k)
        before = detect(self.w)
        if self.kept is None:
            return LayerProjection(self.layer.name, (n, k), dtype, before.pattern, before.density, reason=self.reason)
        stays = int(self.kept.sum())
        return LayerProjection(
            self.layer.name, (n, k), dtype, before.pattern, before.density, stays / size, before.nonzeros - stays,
            lost_energy(self.w, self.kept), error, self.unpermuted,
            None if self.order is None else tuple(self.order.tolist()),
            producer if self.order is not None else None,
        )  # fmt: skip


def _norms(model: nn.Module, layers: Sequence[Layer], example: Any) -> dict[str, Tensor]:
    """By layer the norm of each in feature of x: [k], float64, over the example."""
    squares: dict[str, Tensor] = {}

    def add(layer: Layer, x: Tensor) -> None:
        squares[layer.name] = squares.get(layer.name, 0) + x.double().square().sum(0)

    _watched(model, layers, example, add)
    return {name: total.sqrt() for name, total in squares.items()}


def _errors(model: nn.Module, tasks: Sequence[_Task], example: Any) -> dict[str, float]:
    """By layer |x @ (w - projected w).T| / |x @ w.T| over the example, Frobenius norms, without bias."""
    sums: dict[str, tuple[float, float]] = {}
    by_name = {task.layer.name: task for task in tasks if task.kept is not None}

    def add(layer: Layer, x: Tensor) -> None:
        task = by_name[layer.name]
        assert task.kept is not None
        wide = torch.promote_types(x.dtype, torch.float32)
        moved = linear(x.to(wide), torch.where(task.kept, 0, task.w).to(wide)).double().square().sum()
        size = linear(x.to(wide), task.w.to(wide)).double().square().sum()
        before = sums.get(layer.name, (0.0, 0.0))
        sums[layer.name] = (before[0] + float(moved), before[1] + float(size))

    _watched(model, [task.layer for task in by_name.values()], example, add)
    return {name: (moved / size) ** 0.5 if size else 0.0 for name, (moved, size) in sums.items()}


def _watched(model: nn.Module, layers: Sequence[Layer], example: Any, add: Any) -> None:
    """Runs the example, every x: [rows, k] of the layers passed to add(layer, x); the model is as it was after."""
    handles = []

    def hook(layer: Layer) -> Any:
        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if x is not None and x.numel():
                add(layer, x.detach().reshape(-1, x.shape[-1]))

        return watch

    with untouched(model, [layer.module for layer in layers]), without_fast_paths():
        try:
            for layer in layers:
                handles.append(layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True))
            for inputs in example if isinstance(example, list) else [example]:
                call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
