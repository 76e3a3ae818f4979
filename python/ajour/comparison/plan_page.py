"""A plan as a page of its own: what it comes to, and every layer with its choice; no charts."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ajour.comparison.document import document, tile_list
from ajour.comparison.layer_table import layer_table
from ajour.planning.plan import Plan
from ajour.planning.report import beyond, gains, nothing_to_gain, readable_bytes, warnings

MEASURING = (
    "Medians of one call of each layer, dense and sparse in turns, with weights that come from memory as they do in "
    "the model. The gain is over the best dense on this device, with ≥ where times were unsteady: the fastest turn of "
    "dense over the 80th percentile of sparse. What the model does besides these layers is not in it."
)


def write_plan_page(path: Path, title: str, plan: Plan) -> None:
    """Writes the page."""
    path.write_text(plan_page(title, plan), encoding="utf-8")


def plan_page(title: str, plan: Plan) -> str:
    """The HTML text; every string that comes from a model is escaped."""
    before, after = (sum(getattr(c, name) for c in plan.choices) for name in ("dense_bytes", "sparse_bytes"))
    sparse = sum(c.op not in ("", "dense_linear") for c in plan.choices)
    tiles = [
        (gain, f"of all linear layers over the best dense, {rows} row{'s' * (rows != '1')}")
        for rows, gain in gains(plan)
    ]
    tiles.append((f"{sparse} of {len(plan.choices)}", "layers become sparse"))
    if before:
        tiles.append((f"{after / before:.0%}", f"of the weights: {readable_bytes(before)} → {readable_bytes(after)}"))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Measured on {escape(str(plan.device))}</p>',
        f"<p>{escape(nothing_to_gain(plan) or '')}</p>",
        *(f'<p class="bad">{escape(each)}</p>' for each in warnings(plan)),
        f'<p class="soft">{escape(beyond(plan) or "")}</p>',
        tile_list(tiles),
        layer_table(plan.choices),
        f'<h2>How this was measured</h2><p class="soft">{escape(MEASURING)}</p>',
    ]
    return document(title, "\n".join(parts))
