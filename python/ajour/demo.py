"""The main job on a real model: MiniLM pruned three ways, planned, converted, checked and timed on this device."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.integrations.minilm import agreement, load_minilm, tokens
from ajour.planning.planner import plan
from ajour.pruning import prune
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.verification import Report, verify

CASES: tuple[tuple[Pattern, float | None], ...] = (
    (NM(2, 4), None),
    (Block(32, 32), 0.2),
    (Unstructured(), 0.1),
)
SIZES = ((1, 16), (8, 32), (32, 128))  # batch x tokens
MEMORY = 1.6  # room for a second packed form, so that each size may have its best kernel
FLOOR = 0.97  # never slower, up to the noise of a whole-model measurement


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one size: the model as torch runs it, the best dense, the converted."""

    stock: float
    dense: float
    sparse: float


@torch.inference_mode()
def _latencies(models: dict[str, nn.Module], inputs: dict[str, Tensor], seconds: float) -> dict[str, float]:
    """Interleaved medians in milliseconds; the order of the models turns round by round."""
    for model in models.values():
        model(**inputs)
    times: dict[str, list[float]] = {name: [] for name in models}
    names, begin = list(models), time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times[names[0]]) < 7:
        names = names[1:] + names[:1]
        for name in names:
            start = time.perf_counter()
            models[name](**inputs)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values) for name, values in times.items()}


def _resident(model: nn.Module) -> int:
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers()]
    }
    return sum(held.values())


def run(console: Console) -> bool:
    """Prints the whole story; False if a check failed."""
    torch.manual_seed(0)
    console.rule("ajour: a pruned model goes in, a faster, verified model comes out")
    model, tokenizer = load_minilm()
    unpruned = agreement(model, tokenizer)
    examples = [tokens(model, batch, length) for batch, length in SIZES]
    console.print(
        f"MiniLM-L6 on {torch.get_num_threads()} threads. Agreement with human ratings of 50 documents (Pearson), "
        f"unpruned: {unpruned:.4f}\nOne-shot magnitude pruning hurts quality; this page shows speed, not pruning. "
        "Conversion must not change it: pruned and converted agree to four digits.",
        highlight=False,
    )
    fine = True
    for pattern, density in CASES:
        fine &= _case(console, model, tokenizer, examples, pattern, density)
    return fine


def _tell(console: Console, report: Report) -> None:
    """The report without its table of layers, unless one of them failed."""
    if not report.ok:
        console.print(report, highlight=False)
        return
    calls = ", ".join(f"{count} of {name}" for name, count in report.calls.items())
    worst = max(layer.error_ratio or 0.0 for layer in report.layers)
    console.print(
        f"verified: {len(report.layers)} layers hold the pruned weights bit for bit; op calls in one pass: {calls}; "
        f"largest error of a layer {worst:.2f} of what is allowed, of the model {report.error / report.limit:.2f}",
        highlight=False,
    )


def _case(
    console: Console, dense: nn.Module, tokenizer: Any, examples: list[Any], pattern: Pattern, density: float | None
) -> bool:
    console.rule(f"{pattern}" + (f" at {density:.0%} density" if density else ""))
    masked = prune(copy.deepcopy(dense), pattern, density=density, layers="encoder.*")
    made = plan(masked, examples, memory=MEMORY)
    console.print(made, highlight=False)
    best = copy.deepcopy(masked)
    best = convert(best, plan(best, examples, formats=(), progress=False))
    converted = convert(copy.deepcopy(masked), made)
    report: Report = verify(converted, masked, examples[1])
    _tell(console, report)
    quality = agreement(masked, tokenizer), agreement(converted, tokenizer)
    same = f"{quality[0]:.4f}" == f"{quality[1]:.4f}"
    console.print(f"agreement with humans: pruned {quality[0]:.4f}, converted {quality[1]:.4f} {'✓' if same else '✗'}")
    models = {"stock": masked, "dense": best, "sparse": converted}
    table = Table(title=f"{pattern}: latency of one forward pass, medians")
    for column in ("batch x tokens", "torch as it is", "best dense", "converted", "over best dense", "over torch"):
        table.add_column(column, justify="right")
    slow = []
    for (batch, length), inputs in zip(SIZES, examples, strict=True):
        found = Latency(**_latencies(models, inputs, 2.0))
        gain = found.dense / found.sparse
        if gain < FLOOR:
            slow.append(f"{batch}x{length}: {gain:.2f}x")
        table.add_row(
            f"{batch}x{length}", f"{found.stock:.1f} ms", f"{found.dense:.1f} ms", f"{found.sparse:.1f} ms",
            f"{gain:.2f}x", f"{found.stock / found.sparse:.2f}x",
        )  # fmt: skip
    console.print(table)
    sizes = {name: _resident(held) / 1e6 for name, held in models.items()}
    console.print(f"size in memory: dense {sizes['stock']:.1f} MB, converted {sizes['sparse']:.1f} MB", highlight=False)
    if slow:
        console.print(f"[bold red]slower than the best dense: {', '.join(slow)}[/]")
    return report.ok and same and not slow
