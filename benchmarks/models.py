"""The models suite: whole models, stock and on the best dense kernels against converted, checked in the same run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ajour.conversion import convert
from ajour.integrations.minilm import load_minilm, tokens
from ajour.planning.plan import Plan
from ajour.planning.planner import plan
from ajour.planning.rows import call
from ajour.planning.timing import Side, Timing, cpu_timer, differ, measure
from ajour.pruning import prune
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from benchmarks.encoder import encoder

Row = dict[str, Any]
MEMORY = 2.0  # room for a second form, so that each size may have its best kernel
ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Subject:
    """A model with its zeros to be, and the sizes (batch, tokens) to time it at."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[nn.Module, int, int], Any]
    pattern: Pattern
    density: float | None
    sizes: tuple[tuple[int, int], ...]
    dtype: torch.dtype = torch.float32
    layers: tuple[str, ...] | None = None


def subjects() -> list[Subject]:
    """MiniLM in three patterns, and the 12-layer encoder at 90 % of 32x32 blocks."""
    sizes = ((1, 16), (8, 32), (32, 128))
    zeros: list[tuple[Pattern, float | None]] = [(NM(2, 4), None), (Block(32, 32), 0.2), (Unstructured(), 0.1)]
    made = [
        Subject("MiniLM-L6", _minilm, tokens, pattern, density, sizes, layers=("encoder.*",))
        for pattern, density in zeros
    ]
    for dtype in (torch.float32, torch.bfloat16):
        made.append(Subject("encoder 12x768", encoder, _normal(768), Block(32, 32), 0.1, ((1, 128), (4, 128)), dtype))
    return made


def smoke_subjects() -> list[Subject]:
    """A small encoder that only shows that the suite works."""
    return [Subject("encoder 2x64", lambda: encoder(2, 64, 4, 128), _normal(64), Block(16, 16), 0.25, ((1, 8),))]


def _minilm() -> nn.Module:
    return load_minilm()[0]


def _normal(width: int) -> Callable[[nn.Module, int, int], Tensor]:
    def example(model: nn.Module, batch: int, length: int) -> Tensor:
        weight = next(model.parameters())
        x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length))
        return x.to(weight.device, weight.dtype)

    return example


def run(
    chosen: Sequence[Subject],
    threads: Sequence[int],
    device: torch.device,
    seconds: float,
    plans: Callable[[Plan], None],
) -> Iterator[tuple[str, list[Row]]]:
    """For each model what it was and its result rows, one for each size; `plans` is shown every sparse plan."""
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
    stock = subject.make().to(device, subject.dtype).eval()
    stock = prune(stock, subject.pattern, density=subject.density, layers=subject.layers)
    examples = [subject.example(stock, *size) for size in subject.sizes]
    dense = convert(copy.deepcopy(stock), plan(stock, examples, formats=()))
    made = plan(stock, examples, memory=MEMORY)
    plans(made)
    sparse = convert(copy.deepcopy(stock), made)
    exact = copy.deepcopy(stock).double()
    rows = []
    for (batch, length), inputs in zip(subject.sizes, examples, strict=True):
        models = {"stock": stock, "dense": dense, "sparse": sparse}
        ratio = _error_ratio(stock, sparse, exact, inputs, subject.dtype)
        sides = [Side(name, [_caller(model, inputs)]) for name, model in models.items()]
        found = dict(zip(models, measure(sides, cpu_timer, seconds=seconds, give_up=False), strict=True))
        rows.append(_row(subject, batch, length, found, ratio, made))
    return rows


def _caller(model: nn.Module, inputs: Any) -> Callable[[], object]:
    def run_once() -> object:
        y = call(model, inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return y

    return run_once


def _row(subject: Subject, batch: int, length: int, found: dict[str, Timing], ratio: float, made: Plan) -> Row:
    dense, sparse = found["dense"], found["sparse"]
    before, after = (sum(getattr(c, name) for c in made.choices) for name in ("dense_bytes", "sparse_bytes"))
    return {
        "model": subject.name,
        "pattern": str(subject.pattern),
        "density": subject.density if subject.density is not None else _kept(subject.pattern),
        "batch": batch,
        "tokens": length,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "mode": "eager",
        "threads": torch.get_num_threads(),
        "stock_us": round(found["stock"].median, 1),
        "dense_us": round(dense.median, 1),
        "sparse_us": round(sparse.median, 1),
        "spread": round(max(dense.spread, sparse.spread), 3),
        "speedup": round(dense.median / sparse.median, 3) if ratio <= 1 else None,
        "over_stock": round(found["stock"].median / sparse.median, 3) if ratio <= 1 else None,
        "no_difference": not differ(dense, sparse),
        "dense_bytes": before,
        "sparse_bytes": after,
        "error_ratio": round(ratio, 3),
    }


def _kept(pattern: Pattern) -> float:
    return pattern.keep / pattern.group if isinstance(pattern, NM) else 1.0


def _error_ratio(stock: nn.Module, sparse: nn.Module, exact: nn.Module, inputs: Any, dtype: torch.dtype) -> float:
    """max|e| of the converted over twice that of the masked dense model, both against float64, and a rounding."""
    wide = {name: _widened(value) for name, value in inputs.items()} if isinstance(inputs, dict) else _widened(inputs)
    truth = _output(call(exact, wide))
    errors = [float((_output(call(model, inputs)).double() - truth).abs().max()) for model in (stock, sparse)]
    return errors[1] / (2 * errors[0] + ROUNDING[dtype] * float(truth.abs().max()))


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _output(y: Any) -> Tensor:
    """The first tensor of what a model returns."""
    return y if isinstance(y, Tensor) else y[0]
