"""Prepared: the launches of a step, which serve the next one while all that they were made of stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor

from ajour.train.held import Held
from ajour.train.launch import Launch, Part

Key = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """version, rules: of the masks and of each group. parameters: those with a gradient; states: all that there are.

    idle: what has a mask and no gradient; its zeros are restored all the same.
    """

    version: int
    rules: Sequence[str]
    parameters: Sequence[Tensor]
    launches: Sequence[Launch]
    idle: Sequence[Held]
    states: Sequence[dict[str, Any]]

    def stands(self, version: int, rules: Sequence[str], parameters: Sequence[Tensor], states: Sequence[Any]) -> bool:
        """Whether these launches are those of this step, too."""
        return (
            self.version == version and self.rules == rules
            and len(parameters) == len(self.parameters) and all(map(is_, parameters, self.parameters))
            and len(states) == len(self.states) and all(map(is_, states, self.states))
            and all(launch.stands() for launch in self.launches)
        )  # fmt: skip


def launches(
    groups: Sequence[Mapping[str, Any]], rules: Sequence[str], held: Mapping[Tensor, Held],
    states: Mapping[Tensor, dict[str, Any]],
) -> list[Launch]:  # fmt: skip
    """For the parameters that have a gradient, as few as may be; the states that they need exist afterwards."""
    found: dict[Key, tuple[list[Held], list[Part]]] = {}
    for group, rule in zip(groups, rules, strict=True):
        alike: dict[Key, list[Held]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                each, state = held[parameter], states[parameter]
                each.begin(state, rule)
                key = each.kernel, rule, parameter.device, parameter.dtype, "master" in state
                alike.setdefault(key, []).append(each)
        for key, some in alike.items():
            mine, parts = found.setdefault(key, ([], []))
            mine += some
            parts.append(Part(group, [states[each.parameter] for each in some]))
    return [Launch(key[0], key[1], *both) for key, both in found.items()]
