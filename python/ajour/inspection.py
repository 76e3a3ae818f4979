"""inspect: what the zeros of a model or a file are, layer by layer; changes and measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ajour.detect import detect
from ajour.formats.matrix import DTYPES
from ajour.importers import find_weights, open_checkpoint
from ajour.importers.claims import Checked, claims_of, recipe_claims
from ajour.layers import find_layers
from ajour.printed import fitting, printed
from ajour.terms.errors import FileError
from ajour.terms.pattern import Dense, Pattern, Unstructured

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text


@dataclass(frozen=True)
class LayerInspection:
    """One layer.

    shape:     (n, k), more sides for fused experts; dtype: as torch names it, without "torch.".
    density:   non-zeros / all; pattern: the most useful exact one; patterns: all exact ones, the most useful first.
               All of them, zero_rows and zero_cols are None or empty where the weight has no values to read.
    mask_source: the tool whose mask is applied, or the format that the weight was packed in.
    reason:    None, or why the layer can't be converted.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    density: float | None = None
    pattern: Pattern | None = None
    patterns: tuple[Pattern, ...] = ()
    zero_rows: int | None = None
    zero_cols: int | None = None
    mask_source: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Inspection:
    """Every layer in order; what a config claims of them, checked; and in `notes` what a reader must know."""

    layers: tuple[LayerInspection, ...]
    notes: tuple[str, ...] = ()
    claims: tuple[Checked, ...] = ()

    def to_json(self) -> str:
        """An object with `layers`, `notes` and `claims`; patterns as str() gives them."""
        layers = [{field.name: getattr(layer, field.name) for field in fields(layer)} for layer in self.layers]
        claims = [{**asdict(checked), "true": checked.true, "said": str(checked)} for checked in self.claims]
        return json.dumps({"layers": layers, "notes": self.notes, "claims": claims}, indent=2, default=str)

    def __str__(self) -> str:
        return printed(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.layers:
            yield from fitting(_table(self), console, options)
        notes = (f"note: {note}" for note in self.notes)
        yield from map(_plain, (_summary(self), *_reasons(self.layers), *map(str, self.claims), *notes))


def inspect(model_or_path: nn.Module | str | PathLike[str]) -> Inspection:
    """The patterns of every layer of a model, a Hugging Face folder, a .safetensors file or a torch file of tensors.

    Patterns are found from the values, never from a label: where a config or recipe claims N:M, `claims` say whether it
    is true. Masks of other tools are applied first. Raises FileError, naming what is wrong, for a damaged or unknown
    file; nothing in a file ever runs.
    """
    if isinstance(model_or_path, nn.Module):
        config = getattr(model_or_path, "config", None)
        said = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
        live = tuple(Checked(claim) for claim in claims_of(said))
        return Inspection(tuple(_layers(model_or_path, live)), claims=live)
    if not isinstance(model_or_path, (str, PathLike)):
        raise FileError(f"expected a model or the path of one, found {type(model_or_path).__name__}")
    path = Path(model_or_path)
    checkpoint = open_checkpoint(path)
    weights = find_weights(checkpoint)
    checked = tuple(Checked(claim) for claim in (*claims_of(checkpoint.config), *recipe_claims(path)))
    layers = []
    for weight in weights:
        w = weight.read()
        layers.append(_looked_at(w, weight.reason, weight.name, weight.kind, weight.shape, weight.source))
        _check(checked, weight.name, w, weight.reason)
    notes = tuple(f"{weight.name}: {weight.note}" for weight in weights if weight.note)
    return Inspection(tuple(layers), notes, checked)


def _check(claims: Iterable[Checked], name: str, w: Tensor, reason: str | None) -> None:
    for checked in claims if reason is None else ():
        checked.look_at(name, w)


def _layers(model: nn.Module, claims: Iterable[Checked]) -> Iterator[LayerInspection]:
    for layer in find_layers(model):
        if layer.read is None:
            dtype = str(layer.dtype).removeprefix("torch.")
            yield LayerInspection(layer.name, layer.kind, layer.shape, dtype, reason=layer.reason)
        else:
            w = layer.weight()
            _check(claims, layer.name, w, layer.reason)
            yield _looked_at(w, layer.reason, layer.name, layer.kind, layer.shape, layer.mask_source)


def _looked_at(
    w: Tensor, reason: str | None, name: str, kind: str, shape: tuple[int, ...], source: str | None
) -> LayerInspection:
    dtype = str(w.dtype).removeprefix("torch.")
    if w.dtype not in DTYPES:
        return LayerInspection(
            name, kind, shape, dtype, reason=reason or f"its weight is {dtype}, which no format holds"
        )
    seen = detect(w)
    return LayerInspection(
        name, kind, shape, dtype, seen.density, seen.pattern, tuple(seen.patterns), seen.zero_rows, seen.zero_cols,
        source, reason,
    )  # fmt: skip


def _table(inspection: Inspection) -> Table:
    """One row a layer; columns in which no layer has anything to say are left out."""
    from rich import box
    from rich.table import Table

    rows = [_row(layer) for layer in inspection.layers]
    table = Table(box=box.SIMPLE_HEAD)
    columns = [name for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]
    for name in columns:
        table.add_column(
            name, no_wrap=True, justify="right" if name in ("density", "zero rows", "zero cols") else "left"
        )
    for row in rows:
        table.add_row(*(_plain(row[name]) for name in columns))
    return table


def _plain(text: str) -> Text:
    """Names come from files: what is in them is no markup, and no control code of a terminal."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _row(layer: LayerInspection) -> dict[str, str]:
    others = (str(pattern) for pattern in layer.patterns if pattern not in (layer.pattern, Dense(), Unstructured()))
    return {
        "layer": layer.name or "(the model)",
        "kind": layer.kind,
        "shape": "x".join(map(str, layer.shape)),
        "dtype": layer.dtype,
        "density": "" if layer.density is None else f"{layer.density:.1%}",
        "pattern": str(layer.pattern or ""),
        "also fits": ", ".join(others),
        "zero rows": str(layer.zero_rows or ""),
        "zero cols": str(layer.zero_cols or ""),
        "mask from": layer.mask_source or "",
        "convertible": "no, see below" if layer.reason else "yes",
    }


def _reasons(layers: Sequence[LayerInspection]) -> Iterator[str]:
    """Why layers can't be converted, each reason once."""
    groups: dict[str, list[str]] = {}
    for layer in layers:
        if layer.reason:
            groups.setdefault(layer.reason, []).append(layer.name or "(the model)")
    for reason, names in groups.items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {reason}"


def _summary(inspection: Inspection) -> str:
    """How many layers have zeros, those that can be converted apart from those whose zeros can't be used."""
    convertible = [layer for layer in inspection.layers if layer.reason is None]
    refused = [layer for layer in inspection.layers if layer.reason is not None]
    sparse, lost = (
        sum(layer.density is not None and layer.density < 1 for layer in layers) for layers in (convertible, refused)
    )
    counted = f"{len(inspection.layers)} layers: "
    if not convertible:
        counted += "nothing here that ajour could convert, as it converts linear layers"
        return counted + (f"; {lost} with zeros, which can't be used" if refused else "")
    if not refused:
        return counted + f"{sparse} with zeros, {len(convertible) - sparse} without"
    return (
        f"{counted}{sparse} with zeros that can be used, {len(convertible) - sparse} without; "
        f"{len(refused)} can't be converted, {lost} of them with zeros"
    )
