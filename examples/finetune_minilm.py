"""Prunes a MiniLM, trains it with its zeros held, plans and converts it, and says what each step does to its quality.

python examples/finetune_minilm.py [--pattern 2:4] [--density 0.5] [--steps 60] [--smoke]

The model and the data come as Python packages (see ajour/integrations/minilm.py). Quality is the Pearson correlation of
the cosines of its sentence vectors with human judgements of similarity, over all pairs of 25 documents that training
never sees. Training uses the other 25 documents (1 - their correlation) and 300 unrated ones, and keeps all vectors
near those of the unpruned model (1 - cosine). 300 judged pairs are few: the numbers show that the zeros hold and that
quality comes back, no more. A dense model is trained beside it, by the same loss for as many steps.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

import ajour
from ajour import train
from ajour.integrations.minilm import (
    correlation,
    embed,
    load_minilm,
    rated_documents,
    sentence_vectors,
    unrated_documents,
)
from ajour.terms.pattern import NM, Pattern, parse_pattern


class Data(NamedTuple):
    """Rated documents for training and for judging, and unrated ones with the unpruned model's vectors."""

    texts: list[str]
    ratings: Tensor
    held_texts: list[str]
    held_ratings: Tensor
    unrated: list[str]


def documents() -> Data:
    """Every second rated document is held out: the judged pairs and the trained pairs share no document."""
    texts, ratings = rated_documents()
    return Data(texts[::2], ratings[::2, ::2], texts[1::2], ratings[1::2, 1::2], unrated_documents())


def quality(model: nn.Module, tokenizer: Any, data: Data, length: int) -> float:
    """Pearson correlation with the judgements of the held-out pairs, from the first `length` tokens of each text."""
    return float(correlation(embed(model, tokenizer, data.held_texts, length).double(), data.held_ratings))


def fine_tune(
    model: nn.Module, teacher: nn.Module, tokenizer: Any, optimizer: torch.optim.Optimizer, data: Data,
    masks: train.Masks | None, steps: int, batch: int, length: int,
) -> None:  # fmt: skip
    """`steps` steps of `batch` rated and `batch` unrated texts, the same for every model."""
    draw = torch.Generator().manual_seed(0)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, max(1, steps // 10))
    for _ in range(steps):
        rated = torch.randperm(len(data.texts), generator=draw)[:batch]
        unrated = torch.randperm(len(data.unrated), generator=draw)[:batch]
        texts = [data.texts[i] for i in rated] + [data.unrated[i] for i in unrated]
        with torch.no_grad():
            wanted = sentence_vectors(teacher, tokenizer, texts, length)
        made = sentence_vectors(model, tokenizer, texts, length)
        agreement = correlation(made[:batch], data.ratings[rated][:, rated].float())
        loss = (1 - (made * wanted).sum(-1)).mean() + 0.2 * (1 - agreement)
        optimizer.zero_grad()
        loss.backward()
        if masks is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        else:
            train.clip_grad_norm_(model.parameters(), masks, 1.0)
        optimizer.step()
        warmup.step()


def run(
    console: Console,
    pattern: Pattern,
    density: float | None,
    steps: int,
    batch: int = 8,
    length: int = 64,
    margin: float = 0.05,
) -> dict[str, float]:
    """The whole story; returns the correlations. `margin` is what sparse must gain over dense to be taken."""
    torch.manual_seed(0)
    data, (teacher, tokenizer) = documents(), load_minilm()
    model, dense = copy.deepcopy(teacher), copy.deepcopy(teacher)
    found: dict[str, float] = {}

    def tell(what: str, judged: nn.Module) -> None:
        found[what] = quality(judged, tokenizer, data, 4 * length)
        console.print(f"{what:<44} Pearson {found[what]:.4f} on held-out pairs", highlight=False)

    tell("dense", teacher)
    masks = train.Masks.from_pattern(model, pattern, density, layers="encoder.*").apply_(model)
    tell(f"pruned to {pattern}, density {masks.density():.0%}", model)

    start = time.perf_counter()
    optimizer = train.MaskedAdamW(model.parameters(), masks, lr=1e-4, storage="compact")
    fine_tune(model, teacher, tokenizer, optimizer, data, masks, steps, batch, length)
    assert not any(model.get_parameter(name)[~mask.dense()].any() for name, mask in masks.items()), "a zero came back"
    tell(f"and trained for {steps} steps, zeros held", model)

    optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-4)
    fine_tune(dense, teacher, tokenizer, optimizer, data, None, steps, batch, length)
    tell("the dense one, trained as long", dense)
    console.print(f"trained for {time.perf_counter() - start:.0f} s", highlight=False)

    example = dict(
        tokenizer(data.held_texts[:8], padding=True, truncation=True, max_length=length, return_tensors="pt")
    )
    plan = ajour.plan(model, example, margin=margin, progress=False)
    reference = copy.deepcopy(model)
    model = ajour.convert(model, plan)
    tell("converted", model)
    report = ajour.verify(model, reference, example)
    console.print(plan, report, highlight=False)
    if not report.ok:
        raise SystemExit("the converted model does not compute what the trained one does")
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="2:4", help='"2:4", "block 32x32" or "unstructured"')
    parser.add_argument("--density", type=float, default=0.5, help="the kept share, for all but N:M")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="two steps of eight short texts: does it run?")
    chosen = parser.parse_args()
    pattern = parse_pattern(chosen.pattern)
    density = None if isinstance(pattern, NM) else chosen.density
    if chosen.smoke:
        run(Console(), pattern, density, steps=2, batch=4, length=16, margin=float("-inf"))
    else:
        run(Console(), pattern, density, chosen.steps)


if __name__ == "__main__":
    main()
