"""limits: before anyone prunes, the best gain that each pattern could bring, from bytes and flops alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ajour.layers import ON_META, Layer, find_layers
from ajour.planning.device import OtherWork
from ajour.planning.rows import learn_rows
from ajour.roofline.facts import DeviceFacts, named
from ajour.roofline.measured import MEASURED, facts_of
from ajour.roofline.report import LayerLimits, LimitsReport, SizeLimits
from ajour.roofline.ways import best_us, dense, ways
from ajour.terms.errors import PlanError


def limits(
    model: nn.Module, example: Any, device: torch.device | str | None = None, *, rows: Sequence[int] | None = None
) -> LimitsReport:
    """The best gain over dense that 2:4, 1:4, unstructured zeros and blocks could bring at this example's row counts,
    per layer and for all linear layers together, beside fp8 and int4 dense.

    example: a tensor, a tuple of inputs, a mapping of named inputs, or a list of several of these, for several sizes.
    device:  None for the model's own, "cpu" or "cuda", measured now in a few seconds; or a name: "H100 SXM",
             "RTX 4090". With a name the model may be on the meta device.
    rows:    these numbers of rows at every layer instead; the example may be None then.

    t_limit = t_empty + max(bytes / bandwidth, flops / rate), bytes those of the weight in its form and of x and y. No
    kernel of that kind can be faster, so no gain can be larger; real ones are smaller. Raises PlanError for a device
    of which nothing is known, or where no layer can be converted.
    """
    layers = [replace(each, reason=None) if each.reason == ON_META else each for each in find_layers(model)]
    usable = [layer for layer in layers if layer.reason is None]
    if not usable:
        raise PlanError("the model has no linear layer that could be converted; `ajour.inspect` says why")
    if example is None and not rows:
        raise PlanError("limits need an example, or the numbers of rows")
    others = OtherWork()
    facts = _facts(usable, device)
    notes = [busy] if facts.source == MEASURED and (busy := others.warning()) else []
    sizes = [_size(facts, seen) for seen in _sizes(model, usable, example, rows) if seen]
    names = tuple(way.name for way in ways(facts, _dtype(usable[0])))
    skipped = tuple(f"{each.name}: {each.reason}" for each in layers if each.reason is not None)
    kind = "cpu" if facts.capability is None else "cuda"
    return LimitsReport(
        facts.name, kind, facts.source, facts.bandwidth, dict(facts.rates), names, tuple(sizes), skipped, tuple(notes)
    )


def _facts(usable: Sequence[Layer], device: torch.device | str | None) -> DeviceFacts:
    dtypes = dict.fromkeys(layer.dtype for layer in usable)
    own = usable[0].device
    where = own if device is None else device
    if not isinstance(where, (str, torch.device)):
        raise PlanError(f"expected a device or its name, like 'cpu' or 'H100 SXM', found {where!r}")
    if isinstance(where, str) and where.partition(":")[0] not in ("cpu", "cuda"):
        facts = named(where)
        if unknown := [_dtype(layer) for layer in usable if _dtype(layer) not in facts.rates]:
            raise PlanError(
                f"{facts.name}: no rate is known of {unknown[0]}; expected {', '.join(facts.rates)} weights"
            )
        return facts
    if torch.device(where).type == "meta":
        raise PlanError("the model is on the meta device; name one, like device='H100 SXM'")
    return facts_of(torch.device(where), dtypes)


def _sizes(
    model: nn.Module, usable: Sequence[Layer], example: Any, rows: Sequence[int] | None
) -> Iterator[list[tuple[Layer, int]]]:
    """(layer, rows) of each call, size by size."""
    if rows:
        yield from ([(layer, m) for layer in usable] for m in rows)
        return
    for inputs in example if isinstance(example, list) else [example]:
        seen = learn_rows(model, usable, inputs)
        yield [(layer, m) for layer in usable for m in sorted(seen.get(layer.name, set())) if m]


def _size(facts: DeviceFacts, seen: Sequence[tuple[Layer, int]]) -> SizeLimits:
    made, total, dense_total = [], Counter[str](), 0.0
    for layer, m in seen:
        dtype, (n, k) = _dtype(layer), layer.shape
        stock = best_us(dense(facts, dtype), facts, m, n, k, dtype)
        assert stock is not None
        us = {way.name: best_us(way, facts, m, n, k, dtype) for way in ways(facts, dtype)}
        gains = {name: stock[0] / each[0] if each else None for name, each in us.items()}
        made.append(LayerLimits(layer.name, layer.shape, dtype, m, stock[0], stock[1], gains))
        dense_total += stock[0]
        total.update({name: each[0] if each else float("inf") for name, each in us.items()})
    gains = {name: dense_total / us if us < float("inf") else None for name, us in total.items()}
    return SizeLimits(Counter(m for _, m in seen).most_common(1)[0][0], dense_total, gains, tuple(made))


def _dtype(layer: Layer) -> str:
    return str(layer.dtype).removeprefix("torch.")
