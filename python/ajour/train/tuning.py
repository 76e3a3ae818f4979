"""Regularized mask tuning: the weights stay as they are, and which of them take part is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ajour.train.places import find_places, parametrize_all

START, THRESHOLD = 1e-2, 5e-3  # scores before the first step, and above which an entry takes part


class _Binarized(torch.autograd.Function):
    """mask * w with mask = scores > threshold; the gradient passes straight through the comparison."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scores: Tensor, threshold: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(w)
        ctx.dtype = scores.dtype
        return torch.where(scores > threshold, w, 0.0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        (w,) = ctx.saved_tensors
        return None, dy.to(ctx.dtype) * w.to(ctx.dtype), None


class TunedMask(nn.Module):
    """A parametrization: a frozen weight where its score is above `threshold`, +0.0 elsewhere.

    scores: a float32 parameter of the weight's shape; `mask` is where they are above the threshold. The gradient of a
    score is that of the weight times the weight.
    """

    def __init__(self, w: Tensor, start: float = START, threshold: float = THRESHOLD) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full_like(w, start, dtype=torch.float32))
        self.threshold = threshold

    @property
    def mask(self) -> Tensor:
        """bool, of the weight's shape: what takes part."""
        return self.scores.detach() > self.threshold

    def forward(self, w: Tensor) -> Tensor:
        """The weight, masked."""
        masked: Tensor = _Binarized.apply(w, self.scores, self.threshold)  # type: ignore[no-untyped-call]
        return masked


def tune_masks(
    model: nn.Module, names: Iterable[str], *, start: float = START, threshold: float = THRESHOLD
) -> dict[str, nn.Parameter]:
    """Freezes the whole model and puts a TunedMask on every named parameter; returns name -> scores.

    Give the scores to any optimizer, without weight decay; `train.finish(model)` leaves plain weights with their
    zeros, which are what `Masks.from_zeros` reads. Wu et al. 2023, arXiv 2307.15049. Raises ConversionError for a name
    that isn't a parameter of the model, or is tied; the model is unchanged then.
    """
    places = find_places(model, names)
    model.requires_grad_(False)
    masks = {name: TunedMask(place.parameter, start, threshold) for name, place in places.items()}
    parametrize_all(places, masks)
    return {name: mask.scores for name, mask in masks.items()}


def mask_penalty(scores: Mapping[str, Tensor]) -> Tensor:
    """The sum over layers of ||scores||_2, which the paper adds to the loss of the task times 1e-4."""
    return torch.stack([torch.linalg.vector_norm(score) for score in scores.values()]).sum()


def gradient_dropout(
    task: Tensor, teacher: Tensor, level: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """The gradient of the task, kept with the more probability the better it agrees with the teacher's.

    P = (1 + sign(task) (task + teacher) / (|task| + |teacher| + 1e-8)) / 2, u ~ Uniform(0, 1) for each entry, and the
    result is ((1 - level) + level [P > u]) task. Reproducible by its generator, which lives on the CPU.
    """
    agreement = task.sign() * (task + teacher) / (task.abs() + teacher.abs() + 1e-8)
    u = torch.rand(task.shape, generator=generator, dtype=torch.float32).to(task.device)
    kept = (agreement + 1) / 2 > u
    return torch.where(kept, task, (1 - level) * task)


def backward_with_dropout(
    task_loss: Tensor,
    teacher_loss: Tensor,
    scores: Mapping[str, nn.Parameter],
    *,
    level: float = 1.0,
    generator: torch.Generator | None = None,
) -> None:
    """Writes .grad of every score: the task's gradients after dropout by the teacher's; call it in place of backward.

    task_loss: with the penalty; teacher_loss: such as the KL divergence to the logits of the model before tuning.
    """
    leaves = list(scores.values())
    tasks = torch.autograd.grad(task_loss, leaves, retain_graph=True)
    teachers = torch.autograd.grad(teacher_loss, leaves)
    for score, task, teacher in zip(leaves, tasks, teachers, strict=True):
        score.grad = gradient_dropout(task, teacher, level, generator)
