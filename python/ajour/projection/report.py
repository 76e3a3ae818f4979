"""What a projection would cost, layer by layer: printed, as JSON, and made real when asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ajour.layer_choice import LayerChoice
from ajour.printed import fitting, printed
from ajour.terms.pattern import Pattern

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


@dataclass(frozen=True)
class LayerProjection:
    """One layer.

    shape:       (n, k); dtype: as torch names it, without "torch."; pattern, density: what it is now.
    kept:        the density after; dropped: non-zeros that become zero.
    energy_lost: their share of sum(w**2).
    output_error: |change of x @ w.T| / |x @ w.T| over the example, Frobenius norms; None without one, or where it does
                 not run.
    energy_lost_unpermuted: the same as energy_lost with the in features in their own order, where another was found.
    order:       the order of the in features, or None for their own; producer: the layer whose rows are put in that
                 order, None where x is at run time.
    reason:      None, or why it can't be projected; figures are None then.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pattern: Pattern | None = None
    density: float | None = None
    kept: float | None = None
    dropped: int | None = None
    energy_lost: float | None = None
    output_error: float | None = None
    energy_lost_unpermuted: float | None = None
    order: tuple[int, ...] | None = field(default=None, repr=False)
    producer: str | None = None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits the pattern as it is."""
        return self.dropped == 0 and self.order is None


@dataclass(frozen=True)
class Projection:
    """Every layer, in the model's order, and what `apply` needs; nothing is changed before it is called.

    lose: the share of energy that blocks and scattered weights may lose; scales: by layer what calibration found.
    """

    pattern: Pattern
    layers: tuple[LayerProjection, ...]
    lose: float
    scales: Mapping[str, Tensor | None] = field(default_factory=dict, repr=False)

    def apply(self, model: nn.Module, *, layers: LayerChoice | None = None) -> nn.Module:
        """Zeroes what the report says, in place, and returns the model; checked before anything changes.

        layers: those to project: a name or glob, several of them, or a callable (name, module) -> bool. A layer with
        another order of in features is wrapped in an nn.Permuted, unless a producer's rows were put in that order; a
        model that is itself one such layer is returned as the wrapper. Inside is a copy of the layer with a weight
        parameter of its own (its bias stays the same object), so make optimizers and other holders of parameters
        afterwards; the old weight's memory is free once nobody else holds the old layer. One that does runs the
        projected weight, in the features' own order. Raises ConversionError, naming the layer, if a weight is no longer
        the one that was looked at.
        """
        from ajour.projection.applying import apply

        return apply(self, model, layers)

    def to_json(self) -> str:
        """{"pattern", "lose", "layers": [...]}; patterns as str() gives them, of an order only that there is one."""
        rows = [{**asdict(row), "pattern": str(row.pattern), "order": row.order is not None} for row in self.layers]
        for row in rows:
            row["permuted"] = row.pop("order")
            row["pattern"] = None if row["pattern"] == "None" else row["pattern"]
        return json.dumps({"pattern": str(self.pattern), "lose": self.lose, "layers": rows}, indent=2)

    def __str__(self) -> str:
        return printed(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from fitting(_table(self), console, options)
        yield from (f"{row.name or '(the model)'}: {row.reason}" for row in self.layers if row.reason)
        yield _summary(self)


def _table(report: Projection) -> Table:
    """One row a layer; columns in which no layer has anything to say are left out."""
    from rich import box
    from rich.table import Table

    rows = [_row(row) for row in report.layers if row.reason is None]
    table = Table(box=box.SIMPLE_HEAD)
    columns = [name for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]
    for name in columns:
        left = name in ("layer", "shape", "pattern", "in features")
        table.add_column(name, no_wrap=True, justify="left" if left else "right")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    return table


def _row(row: LayerProjection) -> dict[str, str]:
    permuted = "" if row.order is None else f"rows of {row.producer}" if row.producer else "x is put in order"
    return {
        "layer": row.name or "(the model)",
        "shape": "x".join(map(str, row.shape)),
        "pattern": str(row.pattern),
        "kept": f"{row.density:.1%} → {row.kept:.1%}",
        "zeroed": f"{row.dropped:,}",
        "energy lost": f"{row.energy_lost:.3%}",
        "in their order": "" if row.energy_lost_unpermuted is None else f"{row.energy_lost_unpermuted:.3%}",
        "output error": "" if row.output_error is None else f"{row.output_error:.3%}",
        "in features": permuted,
    }


def _summary(report: Projection) -> str:
    asked = [row for row in report.layers if row.reason is None]
    fit = sum(row.fits for row in asked)
    worst = max((row for row in asked if row.energy_lost), key=lambda row: row.energy_lost or 0, default=None)
    text = f"{len(asked)} layers to {report.pattern}: {fit} fit as they are"
    if worst is not None:
        text += f", {worst.name or 'the model'} would lose most: {worst.energy_lost:.3%} of its energy"
    return text + "; a report changes nothing, .apply(model) does"
