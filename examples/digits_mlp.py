"""Prunes an MLP that reads handwritten digits, trains it with its zeros held, and converts it; in seconds on a CPU.

python examples/digits_mlp.py [--pattern "block 16x16"] [--density 0.15] [--epochs 12]

Needs scikit-learn's files (pip install --no-deps scikit-learn): 1,797 digits of 8 x 8 pixels, a quarter of them held
out for the accuracies that are printed.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

import ajour
from ajour import train
from ajour.terms.pattern import NM, Pattern, parse_pattern


def digits() -> tuple[Tensor, Tensor]:
    """(pixels: float32 [1797, 64] in 0 to 1, classes: int64 [1797])."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise SystemExit("the digits come with scikit-learn; install it with: pip install --no-deps scikit-learn")
    with gzip.open(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = torch.tensor([[float(value) for value in line.split(",")] for line in file])
    return rows[:, :-1] / 16, rows[:, -1].long()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of digits that it reads right."""
    with torch.inference_mode():
        return float((model(x).argmax(-1) == y).double().mean())


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    """Cross-entropy in batches of 64; the same seed gives the same batches."""
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=shuffle).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def run(
    console: Console, pattern: Pattern, density: float | None, epochs: int, margin: float = 0.05
) -> dict[str, float]:
    """The whole story; returns the accuracies. `margin` is what sparse must gain over dense to be taken."""
    torch.manual_seed(0)
    x, y = digits()
    order = torch.randperm(len(x))
    held, seen = order[: len(x) // 4], order[len(x) // 4 :]
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    found: dict[str, float] = {}

    def tell(what: str, judged: nn.Module) -> None:
        found[what] = accuracy(judged, x[held], y[held])
        console.print(f"{what:<42} {found[what]:7.2%} of {len(held)} held-out digits", highlight=False)

    fit(model, torch.optim.AdamW(model.parameters(), 1e-3), x[seen], y[seen], epochs, seed=1)
    tell("dense", model)
    dense = copy.deepcopy(model)

    masks = train.Masks.from_pattern(model, pattern, density).apply_(model)
    tell(f"pruned to {pattern}, density {masks.density():.0%}", model)

    fit(model, train.MaskedAdamW(model.parameters(), masks, lr=1e-3), x[seen], y[seen], epochs, seed=2)
    assert not any(model.get_parameter(name)[~mask.dense()].any() for name, mask in masks.items()), "a zero came back"
    tell(f"and trained for {epochs} epochs, zeros held", model)

    fit(dense, torch.optim.AdamW(dense.parameters(), 1e-3), x[seen], y[seen], epochs, seed=2)
    tell("the dense one, trained as long", dense)

    plan = ajour.plan(model, x[held], margin=margin, progress=False)
    reference = copy.deepcopy(model)
    model = ajour.convert(model, plan)
    tell("converted", model)
    report = ajour.verify(model, reference, x[held])
    console.print(plan, report, highlight=False)
    if not report.ok:
        raise SystemExit("the converted model does not compute what the trained one does")
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="block 16x16", help='"2:4", "block 16x16" or "unstructured"')
    parser.add_argument("--density", type=float, default=0.15, help="the kept share, for all but N:M")
    parser.add_argument("--epochs", type=int, default=12)
    chosen = parser.parse_args()
    pattern = parse_pattern(chosen.pattern)
    density = None if isinstance(pattern, NM) else chosen.density
    run(Console(), pattern, density, chosen.epochs)


if __name__ == "__main__":
    main()
