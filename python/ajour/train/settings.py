"""An optimizer's numbers: which are refused, and how they become the columns that a kernel reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ajour.terms.errors import KernelError


def refuse_settings(
    optimizer: str, foreach: bool | None, differentiable: bool, fused: bool | None, **numbers: float | Tensor
) -> None:
    """KernelError for torch's other implementations, and for a number that is out of range."""
    if foreach or differentiable or fused is False:
        raise KernelError(f"{optimizer} is one fused pass; leave foreach, differentiable and fused out")
    for name, value in numbers.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise KernelError(f"{optimizer}: {name} is a tensor of {value.numel()} elements, expected one")
        if isinstance(value, Tensor) and value.device.type != "cpu":
            continue  # reading it would wait for the device
        if not value >= 0 or (name.startswith("beta") and not value < 1):
            raise KernelError(f"{optimizer}: {name}={float(value)} is out of range")


def column_table(like: Tensor, *columns: float | Tensor) -> Tensor:
    """float64 [like.numel(), columns] on like's device, of numbers, tensors of one element and tensors like `like`."""
    return torch.stack([_column(like, column) for column in columns], dim=1)


def row_table(steps: Sequence[float], columns: Callable[[float], Sequence[float | Tensor]]) -> Tensor:
    """float64 [steps, columns] on the CPU: what `column_table` is of these steps, most often all the same one, in
    numbers, as a dozen operations on tensors take longer than the update of a small model.
    """
    places = {step: place for place, step in enumerate(dict.fromkeys(steps))}
    table = torch.tensor([columns(step) for step in places], dtype=torch.float64, device="cpu")
    if len(places) == 1:
        return table.expand(len(steps), -1)
    return table[torch.tensor([places[step] for step in steps], device="cpu")]


def _column(like: Tensor, column: float | Tensor) -> Tensor:
    if not isinstance(column, Tensor):
        return torch.full_like(like, column)
    if column.numel() == 1 and column.device.type != like.device.type:
        column = column.to(like.device)
    return column.to(like.dtype).reshape(-1).expand_as(like)
