"""The train suite: a step of MaskedAdamW against torch's fused AdamW with a float mask on gradients and weights, and a
whole training step of one layer (train_layer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ajour.magnitude import keep_largest
from ajour.planning.timing import CudaTimer, Side, Timer, Timing, cpu_timer, differ, measure
from ajour.terms.pattern import NM, Block, Pattern, Unstructured
from ajour.train import MaskedAdamW, Masks
from benchmarks import train_layer

Row = dict[str, Any]
Named = list[tuple[str, nn.Parameter]]
OPTIONS: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.01}
STORAGES = ("dense", "compact", "values")  # values: gradients of kept entries alone, as converted layers have them


@dataclass(frozen=True)
class Settings:
    """What to measure. seconds: for each cell; only: text that a cell's name holds; smoke: only that it works."""

    dtypes: Sequence[torch.dtype]
    threads: Sequence[int]
    device: torch.device
    seconds: float = 3.0
    smoke: bool = False
    only: str = ""

    @property
    def timer(self) -> Timer:
        """The clock."""
        return CudaTimer(graph=False) if self.device.type == "cuda" else cpu_timer


@dataclass(frozen=True)
class Cell:
    """What a model's weights are pruned to."""

    pattern: Pattern
    density: float

    def __str__(self) -> str:
        return f"{self.pattern} {self.density:.0%}"


CELLS = (
    Cell(Unstructured(), 0.5), Cell(Unstructured(), 0.1), Cell(NM(2, 4), 0.5), Cell(Block(32, 32), 0.1)
)  # fmt: skip


def run(settings: Settings) -> Iterator[tuple[str, list[Row]]]:
    """For each cell its name and a result row for each storage, then for each way to hold a layer; all of a cell take
    turns.
    """
    before = torch.get_num_threads()
    try:
        for threads in settings.threads:
            torch.set_num_threads(threads)
            for dtype in settings.dtypes:
                for cell in CELLS:
                    if settings.only in str(cell):
                        yield str(cell), _rows(settings, cell, dtype)
                        yield f"a layer, {cell}", _layer_rows(settings, cell, dtype)
    finally:
        torch.set_num_threads(before)


def shapes(smoke: bool) -> dict[str, tuple[int, ...]]:
    """Weights and biases of 14 encoder layers as BERT-base has them: 99 M parameters; one small layer for a smoke."""
    layers, side = (1, 32) if smoke else (14, 768)
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        sizes = {"q": (side, side), "k": (side, side), "v": (side, side), "out": (side, side)}
        sizes |= {"up": (4 * side, side), "down": (side, 4 * side)}
        for name, (n, k) in sizes.items():
            found |= {f"{layer}.{name}.weight": (n, k), f"{layer}.{name}.bias": (n,)}
    return found


def _layer_rows(settings: Settings, cell: Cell, dtype: torch.dtype) -> list[Row]:
    shape = train_layer.SMOKE if settings.smoke else train_layer.SHAPE
    scores = torch.rand(shape.n, shape.k, generator=torch.Generator().manual_seed(1))
    kept = keep_largest(scores, cell.pattern, cell.density).to(settings.device)
    return train_layer.layer_rows(shape, cell.pattern, kept, dtype, settings.timer, settings.seconds)


def _rows(settings: Settings, cell: Cell, dtype: torch.dtype) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    sizes = shapes(settings.smoke)
    kept = {
        name: keep_largest(torch.rand(shape, generator=generator), cell.pattern, cell.density).to(settings.device)
        for name, shape in sizes.items()
        if len(shape) == 2
    }
    grads = {name: torch.randn(shape, generator=generator).to(settings.device, dtype) for name, shape in sizes.items()}
    masks = Masks.from_tensors(kept)
    steps = [_masked_fused(grads, kept), _fused(grads), *(_ours(grads, masks, storage) for storage in STORAGES)]
    source = torch.randn(max(1, sum(g.numel() for g in grads.values()) // 2), device=settings.device)
    target = torch.empty_like(source)
    streams = [lambda: target.copy_(source), lambda: target.add_(source)]
    sides = [Side(str(place), [call]) for place, call in enumerate([*steps, *streams])]
    timings = measure(sides, settings.timer, seconds=settings.seconds, give_up=False)
    bandwidth = source.nbytes * max(2 / timings[-2].median, 3 / timings[-1].median)
    error_ratio = _error_ratio(settings.device, cell, dtype)
    return [
        _row(cell, storage, grads, masks, [timings[0], timings[1], timing], bandwidth, error_ratio[storage])
        for storage, timing in zip(STORAGES, timings[2:5], strict=True)
    ]


def _parameters(grads: dict[str, Tensor], kept: dict[str, Tensor] | None = None) -> Named:
    """Random weights with these gradients; zero, or left out where `kept` is given and values are meant."""
    found = []
    for name, grad in grads.items():
        weight = nn.Parameter(torch.randn(grad.shape, device=grad.device, dtype=grad.dtype))
        weight.grad = grad
        if kept is not None and name in kept:
            weight.data.masked_fill_(~kept[name], 0)
        found.append((name, weight))
    return found


def _fused(grads: dict[str, Tensor]) -> Callable[[], object]:
    return torch.optim.AdamW([p for _, p in _parameters(grads)], fused=True, **OPTIONS).step


def _masked_fused(grads: dict[str, Tensor], kept: dict[str, Tensor]) -> Callable[[], object]:
    """What people write today: the gradient and the weight times a float mask around a dense step."""
    parameters = dict(_parameters(grads, kept))
    optimizer = torch.optim.AdamW(parameters.values(), fused=True, **OPTIONS)
    floats = {name: mask.to(grads[name].dtype) for name, mask in kept.items()}
    weights = [parameters[name].detach() for name in floats]
    own = [parameters[name].grad for name in floats]

    def step() -> None:
        torch._foreach_mul_(own, list(floats.values()))
        optimizer.step()
        torch._foreach_mul_(weights, list(floats.values()))

    return step


def _ours(grads: dict[str, Tensor], masks: Masks, storage: str) -> Callable[[], object]:
    kept = {name: mask.dense() for name, mask in masks.items()}
    if storage == "values":
        values = {name: grad[kept[name]] if name in kept else grad for name, grad in grads.items()}
        return MaskedAdamW(_parameters(values), None, **OPTIONS).step
    return MaskedAdamW(_parameters(grads, kept), masks, storage=storage, **OPTIONS).step


def _nbytes(storage: str, grads: dict[str, Tensor], masks: Masks) -> float:
    """What a step must move: weights and moments both ways, gradients once, and the bits of the masks."""
    total = 0.0
    for name, grad in grads.items():
        own = grad.numel() if name not in masks else masks[name].kept
        whole = own if storage == "values" else grad.numel()
        total += 3 * grad.element_size() * whole + 16 * (whole if storage == "dense" else own)
        total += 0 if storage == "values" or name not in masks else whole / 8
    return total


def _error_ratio(device: torch.device, cell: Cell, dtype: torch.dtype) -> dict[str, float]:
    """Three steps on one weight: the largest error against float64, as a share of twice that of torch's own optimizer
    plus a rounding of the weights.
    """
    torch.manual_seed(2)
    kept = keep_largest(torch.rand(96, 128), cell.pattern, cell.density).to(device)
    start = torch.where(kept, torch.randn(96, 128, device=device), 0).to(dtype)
    grads = [torch.where(kept, torch.randn(96, 128, device=device), 0).to(dtype) for _ in range(3)]

    def trained(make: Callable[[nn.Parameter], torch.optim.Optimizer], w: Tensor, cut: Tensor | None) -> Tensor:
        parameter = nn.Parameter(w.clone() if cut is None else w[cut])
        optimizer = make(parameter)
        for grad in grads:
            parameter.grad = grad.to(w.dtype) if cut is None else grad[cut]
            optimizer.step()
        whole = parameter.detach().double()
        return whole * kept if cut is None else torch.zeros_like(w, dtype=torch.float64).masked_scatter(cut, whole)

    options = OPTIONS | {"lr": 1e-2}
    exact = trained(lambda p: torch.optim.AdamW([p], **options), start.double(), None)
    theirs = trained(lambda p: torch.optim.AdamW([p], fused=True, **options), start, None)
    allowed = 2 * (theirs - exact).abs().max() + 2.0**-23 * exact.abs().max()
    masks = Masks.from_tensors({"w": kept})
    found = {}
    for storage in STORAGES:
        cut = kept if storage == "values" else None
        given, kind = (None, "dense") if storage == "values" else (Masks(dict(masks)), storage)
        mine = trained(lambda p, m=given, s=kind: MaskedAdamW([("w", p)], m, storage=s, **options), start, cut)
        found[storage] = float((mine - exact).abs().max() / allowed)
    return found


def _row(
    cell: Cell, storage: str, grads: dict[str, Tensor], masks: Masks, timings: Sequence[Timing], bandwidth: float,
    error_ratio: float,
) -> Row:  # fmt: skip
    theirs, alone, mine = timings
    device = next(iter(grads.values())).device
    dtype = next(iter(grads.values())).dtype
    nbytes = _nbytes(storage, grads, masks)
    limit = nbytes / bandwidth
    return {
        "op": MaskedAdamW.op.name,
        "pattern": str(cell.pattern),
        "density": round(masks.density(), 4),
        "mask": "random",
        "kernel": MaskedAdamW.op.choose(device.type, dtype).name,
        "config": storage,
        "m": len(grads),
        "n": sum(grad.numel() for grad in grads.values()),
        "k": 1,
        "dtype": str(dtype).removeprefix("torch."),
        "mode": "eager",
        "dense_us": round(theirs.best, 3),
        "dense_kernel": "fused AdamW and a float mask",
        "today_us": round(theirs.best, 3),
        "control_us": round(alone.best, 3),  # fused AdamW without a mask, which loses the zeros
        "sparse_us": round(mine.worst, 3),
        "spread": round(max(mine.spread, theirs.spread), 3),
        "speedup": round(theirs.best / mine.worst, 3) if error_ratio <= 1 else None,
        "steady": mine.steady and theirs.steady,
        "no_difference": not differ(mine, theirs),
        "bytes": round(nbytes),
        "limit_us": round(limit, 3),
        "limit_fraction": round(limit / mine.worst, 3),
        "error_ratio": round(error_ratio, 3),
        "shape": f"{len(grads)} tensors",
        "threads": torch.get_num_threads(),
    }
