"""The main job on a real model: MiniLM pruned three ways, planned, converted, checked and timed on this device."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ajour.comparison import Comparison, compare
from ajour.comparison.page import write_page
from ajour.comparison.report import latencies, memory_line, verified_line
from ajour.comparison.sides import CONVERTED, DENSE
from ajour.conversion import convert
from ajour.integrations.minilm import agreement, load_minilm, tokens
from ajour.planning.planner import plan
from ajour.pruning import prune
from ajour.terms.errors import MachineError
from ajour.terms.pattern import NM, Block, Pattern, Unstructured

CASES: tuple[tuple[Pattern, float | None], ...] = (
    (NM(2, 4), None),
    (Block(32, 32), 0.2),
    (Unstructured(), 0.1),
)
SIZES = ((1, 16), (8, 32), (32, 128))  # batch x tokens
MEMORY = 1.6  # room for a second packed form, so that each size may have its best kernel
FLOOR = 0.97  # never slower, up to the noise of a whole-model measurement
TITLE = "ajour: a pruned model goes in, a faster, verified model comes out"


@dataclass(frozen=True)
class Case:
    """One way of pruning: the comparison, and agreement with human ratings, pruned and converted."""

    comparison: Comparison
    pruned: float
    converted: float

    @property
    def same_quality(self) -> bool:
        """Conversion must not change it."""
        return f"{self.pruned:.4f}" == f"{self.converted:.4f}"

    @property
    def slow(self) -> list[str]:
        """Sizes at which the converted model is slower than the best dense one; if times are unsteady, for certain."""
        gains = {size.label: size.times[DENSE].worst / size.times[CONVERTED].best for size in self.comparison.sizes}
        return [f"{label}: {gain:.2f}x" for label, gain in gains.items() if gain < FLOOR]

    @property
    def ok(self) -> bool:
        """Verified, of the same quality, and nowhere slower."""
        return self.comparison.ok and self.same_quality and not self.slow


def run(console: Console, html: Path) -> list[Case]:
    """Prints the whole story, writes its page and returns what was found."""
    torch.manual_seed(0)
    console.rule(TITLE)
    model, tokenizer = load_minilm()
    examples = {f"{batch}x{length}": tokens(model, batch, length) for batch, length in SIZES}
    intro = (
        f"MiniLM-L6 on {torch.get_num_threads()} threads. Agreement with human ratings of 50 documents (Pearson), "
        f"unpruned: {agreement(model, tokenizer):.4f}. One-shot magnitude pruning hurts quality; this shows speed, not "
        "pruning. Conversion must not change it: pruned and converted agree to four digits."
    )
    console.print(intro, highlight=False)
    cases = [_case(console, model, tokenizer, examples, pattern, density) for pattern, density in CASES]
    _write(console, html, intro, cases)
    return cases


def to_json(cases: list[Case]) -> str:
    """A list of comparisons, each with the agreement with human ratings and `ok`."""
    agreements = ({"pruned": case.pruned, "converted": case.converted} for case in cases)
    made = [
        {**case.comparison.as_dict(), "agreement": agreed, "ok": case.ok}
        for case, agreed in zip(cases, agreements, strict=True)
    ]
    return json.dumps(made, indent=2)


def _case(
    console: Console,
    dense: nn.Module,
    tokenizer: Any,
    examples: dict[str, Any],
    pattern: Pattern,
    density: float | None,
) -> Case:
    name = f"{pattern}" + (f" at {density:.0%} density" if density else "")
    console.rule(name)
    masked = prune(copy.deepcopy(dense), pattern, density=density, layers="encoder.*")
    made = plan(masked, list(examples.values()), memory=MEMORY)
    console.print(made, highlight=False)
    found = compare(masked, examples, name=f"MiniLM-L6, {name}", plan=made, compiled=False)
    converted = convert(copy.deepcopy(masked), made)
    case = Case(found, agreement(masked, tokenizer), agreement(converted, tokenizer))
    console.print(found if not found.ok else verified_line(found), highlight=False)
    console.print(
        f"agreement with humans: pruned {case.pruned:.4f}, converted {case.converted:.4f} "
        f"{'✓' if case.same_quality else '✗'}"
    )
    console.print(latencies(found))
    console.print(memory_line(found), highlight=False)
    if case.slow:
        console.print(f"[bold red]slower than the best dense: {', '.join(case.slow)}[/]")
    return case


def _write(console: Console, html: Path, intro: str, cases: list[Case]) -> None:
    """The page; without matplotlib it is left out aloud."""
    try:
        write_page(html, TITLE, intro, [case.comparison for case in cases])
    except MachineError as error:
        console.print(f"[yellow]no page: {error}[/]")
    else:
        console.print(f"wrote {html}: the same with charts, for a browser", highlight=False)
