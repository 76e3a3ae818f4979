"""What `verify` found, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ajour.printed import fitting, printed

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


@dataclass(frozen=True)
class LayerReport:
    """One converted layer.

    exact:       its to_dense() equals the reference's masked weight: non-zeros bit for bit, zeros as +0.0.
    calls:       of its op, by the example. kernels: those that served them.
    error_ratio: max|e| / (2 max|e_dense| + 2**-23 max(|x| |w|.T)) at its own input, at most 1; None if it never ran.
    """

    name: str
    op: str
    pattern: str
    exact: bool
    calls: int
    kernels: tuple[str, ...]
    error_ratio: float | None


@dataclass(frozen=True)
class Report:
    """What `verify` found; `ok` is True where `failures`, one sentence each, are none.

    error, limit: of the model's outputs, max|y - y64| <= 2 max|y_dense - y64| + 4 eps max|y64|, y64 the reference in
                  float64; where that can't run, max|y - y_dense| <= 64 eps max|y_dense|. `against` says which.
                  y_dense is the reference's own and, where layers run on oneDNN, also with those on oneDNN: the
                  larger error counts.
    calls:        of every op. bytes, reference_bytes: of the distinct memory of all parameters and buffers.
    notes:        what a reader should know: fast paths that were switched off.
    """

    layers: tuple[LayerReport, ...]
    error: float
    limit: float
    against: str
    calls: Mapping[str, int]
    bytes: int
    reference_bytes: int
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_json(self) -> str:
        """All fields, and `ok`."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2)

    def __str__(self) -> str:
        return printed(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from fitting(_table(self), console, options)
        yield f"outputs: largest error {self.error:.3g}, allowed {self.limit:.3g} (against {self.against})"
        yield "op calls: " + (", ".join(f"{name} {count}" for name, count in self.calls.items()) or "none")
        share = self.bytes / self.reference_bytes if self.reference_bytes else 1.0
        yield f"resident: {self.bytes / 1e6:.1f} MB, reference {self.reference_bytes / 1e6:.1f} MB ({share:.0%})"
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"FAILED {failure}" for failure in self.failures)
        yield "verified" if self.ok else f"{len(self.failures)} checks failed"


def _table(report: Report) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("layer", "op", "pattern", "weight", "calls", "kernels", "error / allowed"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("calls", "error / allowed") else "left")
    for layer in report.layers:
        ratio = "" if layer.error_ratio is None else f"{layer.error_ratio:.2f}"
        table.add_row(
            layer.name or "(the model)", layer.op, layer.pattern, "exact" if layer.exact else "DIFFERS",
            str(layer.calls), ", ".join(layer.kernels), ratio,
        )  # fmt: skip
    return table
