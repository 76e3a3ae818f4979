"""The tokens suite: decoding with a model of Llama-3-8B's shape, tokens per second, dense against converted.

On a GPU a step is a CUDA graph that is replayed. The dense model has the same zeros, so both compute the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.planning.plan import Plan
from ajour.planning.planner import plan
from ajour.planning.timing import Side, Timing, differ, measure, timer_for
from ajour.pruning import prune
from ajour.terms.pattern import NM, Pattern, Unstructured
from benchmarks.llama import LLAMA_8B, SMOKE, Shape, decoder

Row = dict[str, Any]
BATCHES = (1, 8, 32)
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-23}


@dataclass(frozen=True)
class Subject:
    """A model's shape with its zeros to be, and the batches to decode."""

    name: str
    shape: Shape
    pattern: Pattern
    density: float | None
    batches: tuple[int, ...] = BATCHES
    dtype: torch.dtype = torch.bfloat16


def subjects() -> list[Subject]:
    """Llama-3-8B at 2:4, and at 50, 70 and 90 % of zeros anywhere."""
    zeros: list[tuple[Pattern, float | None]] = [(NM(2, 4), None)]
    zeros += [(Unstructured(), density) for density in (0.5, 0.3, 0.1)]
    return [Subject("Llama-3-8B", LLAMA_8B, pattern, density) for pattern, density in zeros]


def smoke_subjects() -> list[Subject]:
    """A model of two small layers that only shows that the suite works."""
    return [Subject("Llama smoke", SMOKE, NM(2, 4), None, (1, 4), torch.float32)]


def run(
    chosen: Sequence[Subject],
    threads: Sequence[int],
    device: torch.device,
    seconds: float,
    plans: Callable[[Plan], None],
) -> Iterator[tuple[str, list[Row]]]:
    """For each model what it was and its result rows, one for each batch; `plans` is shown every sparse plan."""
    before = torch.get_num_threads()
    try:
        for count in threads:
            torch.set_num_threads(count)
            for subject in chosen:
                yield f"{subject.name} {subject.pattern}", _rows(subject, device, seconds, plans)
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _rows(subject: Subject, device: torch.device, seconds: float, plans: Callable[[Plan], None]) -> list[Row]:
    stock = decoder(subject.shape, device, subject.dtype)
    stock = prune(stock, subject.pattern, density=subject.density, layers=("blocks.*",))
    generator = torch.Generator().manual_seed(1)
    examples = [
        torch.randint(subject.shape.vocabulary, (batch, 1), generator=generator).to(device) for batch in subject.batches
    ]
    made = plan(stock, examples)
    plans(made)
    sparse = convert(copy.deepcopy(stock), made)
    rows = []
    for tokens in examples:
        ratio = _error_ratio(stock, sparse, tokens, subject.dtype)
        sides = [Side(name, [partial(model, tokens)]) for name, model in (("dense", stock), ("sparse", sparse))]
        timings = measure(sides, timer_for(device), seconds=seconds, give_up=False)
        rows.append(_row(subject, tokens.shape[0], timings, ratio, made, device))
    return rows


def _row(
    subject: Subject, batch: int, timings: Sequence[Timing], ratio: float, made: Plan, device: torch.device
) -> Row:
    dense, sparse = timings
    before, after = (sum(getattr(c, name) for c in made.choices) for name in ("dense_bytes", "sparse_bytes"))
    pattern = subject.pattern
    return {
        "model": subject.name,
        "pattern": str(pattern),
        "density": pattern.keep / pattern.group if isinstance(pattern, NM) else subject.density,
        "batch": batch,
        "tokens": 1,
        "context": subject.shape.context,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "mode": "graph" if device.type == "cuda" else "eager",
        "threads": torch.get_num_threads(),
        "dense_us": round(dense.best, 1),
        "sparse_us": round(sparse.worst, 1),
        "dense_tokens_per_second": round(batch * 1e6 / dense.best, 1),
        "sparse_tokens_per_second": round(batch * 1e6 / sparse.worst, 1),
        "spread": round(max(dense.spread, sparse.spread), 3),
        "speedup": round(dense.best / sparse.worst, 3) if ratio <= 1 else None,
        "over_stock": round(dense.best / sparse.worst, 3) if ratio <= 1 else None,
        "steady": dense.steady and sparse.steady,
        "no_difference": not differ(dense, sparse),
        "dense_bytes": before,
        "sparse_bytes": after,
        "error_ratio": round(ratio, 3),
    }


def _error_ratio(stock: nn.Module, sparse: nn.Module, tokens: Tensor, dtype: torch.dtype) -> float:
    """max|e| of the converted over twice that of the masked dense model, both against float64, and a rounding."""
    truth: Tensor = stock.exact(tokens)  # type: ignore[operator]
    errors = [float((model(tokens).double() - truth).abs().max()) for model in (stock, sparse)]
    return errors[1] / (2 * errors[0] + ROUNDING[dtype] * float(truth.abs().max()))
