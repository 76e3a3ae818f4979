"""Prepared: the launches of a step, which serve the next one while all that they were made of stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor

from ajour.train.held import Held
from ajour.train.launch import Launch, Part
from ajour.train.masks import Masks

Key = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """masks: and their version. rules: of each group. groups: and how many of its parameters have a gradient.
    parameters: those with a gradient; states: all that there are.

    idle: what has a mask and no gradient; its zeros are restored all the same.
    """

    masks: tuple[Masks, int]
    rules: Sequence[str]
    groups: Sequence[tuple[dict[str, Any], int]]
    parameters: Sequence[Tensor]
    launches: Sequence[Launch]
    idle: Sequence[Held]
    states: Sequence[dict[str, Any]]

    def stands(
        self, masks: tuple[Masks, int], rules: Sequence[str], groups: Sequence[tuple[dict[str, Any], int]],
        parameters: Sequence[Tensor], states: Sequence[Any],
    ) -> bool:  # fmt: skip
        """Whether these launches are those of this step, too."""
        return (
            self.masks[0] is masks[0] and self.masks[1] == masks[1] and self.rules == rules
            and len(groups) == len(self.groups)
            and all(a[0] is b[0] and a[1] == b[1] for a, b in zip(self.groups, groups, strict=True))
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
