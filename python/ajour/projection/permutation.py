"""An order of in features in which an N:M pattern keeps more of a weight: greedy swaps of channels, with escapes.

After Pool and Yu, "Channel Permutations for N:M Sparsity" (NeurIPS 2021): all pairs of channels of different groups are
priced, the best swaps of disjoint groups are made, and where none gains any more, a few random swaps lead out of the
local optimum. Nothing here depends on a clock, so the same weight gives the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ajour._native import native
from ajour.memory import HOST
from ajour.terms.pattern import NM

BUDGET = 20.0  # times that all pairs of channels may be priced; without a bound 2:4 took 6 to 14 to settle
ESCAPES = 4  # random excursions from a local optimum; ten of them gained under 1 % of what was still lost
STRAYED = 0.1  # the share of groups that an excursion starts with
LEAST = 1e-6  # of the kept energy, the gain of a swap that counts: float32 sums can't tell less


@dataclass(frozen=True)
class Found:
    """order: int64 [k], feature i of the permuted weight is feature order[i]; the energy kept before and after."""

    order: Tensor
    before: float
    after: float


@torch.no_grad()
def search(energy: Tensor, pattern: NM) -> Found:
    """The order of the columns of energy: [n, k] (not negative, w**2 as a rule) that keeps most of it under `pattern`.

    Never worse than the order as it is. The last group of a k that is no multiple stays the one that overhangs.
    """
    k = energy.shape[1]
    columns = energy.detach().to(HOST, torch.float32)
    groups = -(-k // pattern.group)
    walk = _Walk(pad(columns, (0, groups * pattern.group - k)), pattern, k)
    before = kept_energy(columns, pattern)
    best, most = walk.groups.clone(), float(walk.kept.sum(dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    for attempt in range(ESCAPES + 1):
        if attempt:
            walk.restart(best)
            walk.stray(generator)
        walk.climb()
        total = float(walk.kept.sum(dtype=torch.float64))
        if total > most:
            best, most = walk.groups.clone(), total
        if walk.priced >= BUDGET:
            break
    order = best.flatten()
    order = order[order < k]
    after = kept_energy(columns[:, order], pattern)
    if after <= before:
        return Found(torch.arange(k), before, before)
    return Found(order, before, after)


def kept_energy(energy: Tensor, pattern: NM) -> float:
    """The sum of the `keep` largest of every group of energy: [n, k]."""
    groups = pad(energy, (0, -energy.shape[1] % pattern.group)).view(len(energy), -1, pattern.group)
    return float(groups.topk(pattern.keep, -1).values.sum(dtype=torch.float64))


class _Walk:
    """A partition of the channels into groups, and what every swap of two channels would gain.

    With channel c's group without c, and another channel in its place, a row keeps its keep - 1 largest of the others
    and the larger of the next one and the newcomer: so price[c, j] = a[c] + sum over rows of max(b[c], x[j]).
    """

    def __init__(self, columns: Tensor, pattern: NM, k: int) -> None:
        self.columns, self.keep, self.k = columns, pattern.keep, k
        self.groups = torch.arange(columns.shape[1]).view(-1, pattern.group)
        self.second = _tiles(columns, native.MAX_SUM_COLUMNS)
        self.price = torch.empty(columns.shape[1], columns.shape[1])
        self.kept = torch.empty(len(self.groups))
        self.priced = 0.0
        self._reprice(torch.arange(len(self.groups)))

    def restart(self, groups: Tensor) -> None:
        """Back to a partition seen before."""
        changed = (self.groups != groups).any(1).nonzero().flatten()
        self.groups = groups.clone()
        self._reprice(changed)

    def stray(self, generator: torch.Generator) -> None:
        """Swaps channels of random pairs of groups, whatever that costs."""
        order = torch.randperm(len(self.groups), generator=generator)
        count = max(1, int(STRAYED * len(order) / 2)) if len(order) > 1 else 0
        places = torch.randint(self.groups.shape[1], (count, 2), generator=generator)
        pairs = [
            (int(self.groups[order[2 * i], places[i, 0]]), int(self.groups[order[2 * i + 1], places[i, 1]]))
            for i in range(count)
        ]
        self._swap([pair for pair in pairs if max(pair) < self.k])

    def climb(self) -> None:
        """Makes the best swaps of disjoint groups, round after round, until none gains or the budget is spent."""
        while self.priced < BUDGET and (pairs := self._best_swaps()):
            self._swap(pairs)

    def _best_swaps(self) -> list[tuple[int, int]]:
        group_of = self._group_of()
        held = self.kept[group_of]
        gain = (self.price + self.price.T).sub_(held).sub_(held.unsqueeze(1))
        gain[self.k :] = gain[:, self.k :] = 0  # what only fills the last group up stays there
        gains, partners = gain.max(1)
        least = LEAST * float(self.kept.sum()) / len(self.kept)
        taken: set[int] = set()
        pairs: list[tuple[int, int]] = []
        order = gains.argsort(descending=True, stable=True)
        owners, others = group_of.tolist(), partners.tolist()
        for channel in order[: int((gains > least).sum())].tolist():
            pair = (channel, others[channel])
            mine, theirs = owners[pair[0]], owners[pair[1]]
            if mine != theirs and taken.isdisjoint((mine, theirs)):
                taken.update((mine, theirs))
                pairs.append(pair)
        return pairs

    def _group_of(self) -> Tensor:
        owners = torch.empty(self.groups.numel(), dtype=torch.int64)
        owners[self.groups.flatten()] = torch.arange(len(self.groups)).repeat_interleave(self.groups.shape[1])
        return owners

    def _swap(self, pairs: list[tuple[int, int]]) -> None:
        if not pairs:
            return
        first, second = torch.tensor(pairs).T
        owners = self._group_of()
        changed = torch.cat((owners[first], owners[second]))
        new_name = torch.arange(self.groups.numel())
        new_name[first], new_name[second] = second, first
        self.groups[changed] = new_name[self.groups[changed]]
        self._reprice(changed)

    def _reprice(self, changed: Tensor) -> None:
        """Anew for the channels of the changed groups, against all channels."""
        if not len(changed):
            return
        members = self.columns[:, self.groups[changed]]  # [n, changed, group]
        channels = self.groups[changed].flatten()
        above, next_one = _without_each(members, self.keep)
        first = _tiles(next_one, native.MAX_SUM_ROWS)
        sums = torch.empty(len(first) * native.MAX_SUM_ROWS, len(self.second) * native.MAX_SUM_COLUMNS)
        native.max_sums(
            first.data_ptr(), len(first), self.second.data_ptr(), len(self.second), first.shape[1], sums.data_ptr()
        )
        self.price[channels] = sums[: len(channels), : self.price.shape[1]].add_(above.unsqueeze(1))
        self.price[channels.unsqueeze(1), self.groups[changed].repeat_interleave(members.shape[2], 0)] = 0
        self.kept[changed] = _largest(list(members.unbind(2)), self.keep)[0].sum(0)
        self.priced += len(channels) / self.price.shape[1]


def _without_each(members: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """For each channel of members: [n, groups, group] the others of its group: the sum over rows of their keep - 1
    largest, [channels], and the next one in each row, [n, channels].
    """
    parts = list(members.unbind(2))
    above, following = [], []
    for place in range(len(parts)):
        total, last = _largest(parts[:place] + parts[place + 1 :], keep)
        above.append((total - last).sum(0))
        following.append(last)
    return torch.stack(above, 1).flatten(), torch.stack(following, 2).flatten(1)


def _largest(parts: list[Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """Elementwise over at least `keep` tensors: the sum of the `keep` largest, and the smallest of these."""
    top: list[Tensor] = []
    for part in parts:
        for place, held in enumerate(top):
            top[place], part = torch.maximum(held, part), torch.minimum(held, part)
        if len(top) < keep:
            top.append(part)
    return torch.stack(top).sum(0), top[-1]


def _tiles(columns: Tensor, width: int) -> Tensor:
    """[tiles, n, width] of columns: [n, any], filled up with zeros."""
    padded = pad(columns, (0, -columns.shape[1] % width))
    return padded.view(len(columns), -1, width).transpose(0, 1).contiguous()
