"""Labels: the N:M pattern that a config or a recipe claims, and what the zeros say to it.

N:M is two conventions. NVIDIA's tools (ASP, modelopt) and ajour count the N that are *kept* of M neighbours; SparseGPT,
Wanda and llm-compressor count the N that are *pruned*. They agree for 2:4, 4:8 and 1:2; 1:4 keeps 25 % by the one and
75 % by the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

LARGEST_RECIPE = 1_000_000  # bytes
_RATIO = re.compile(r"(\d{1,3}):(\d{1,3})")
_RECIPE = re.compile(r"mask_structure\s*[:=]\s*[\"']?(\d{1,3}:\d{1,3})")


@dataclass(frozen=True)
class Claim:
    """`first`:`group`, of which `first` are pruned (`counts` is "pruned") or kept. where: who claims it.

    ignored: layers that it is not made for.
    """

    first: int
    group: int
    counts: str
    where: str
    ignored: tuple[str, ...] = ()

    @property
    def keep(self) -> int:
        """How many of a group it says are kept."""
        return self.group - self.first if self.counts == "pruned" else self.first

    def is_for(self, layer: str) -> bool:
        """Whether it is made for that layer."""
        leaf = layer.rpartition(".")[2]
        return not any(name in (layer, leaf) or _matches(name, layer) for name in self.ignored)


@dataclass
class Checked:
    """A claim after looking at the zeros of every layer that it is made for.

    first_broken: (layer, row, first column, non-zeros) of the first group that keeps more than the claim says.
    other_way: whether every group keeps no more than the other convention would say.
    """

    claim: Claim
    layers: int = 0
    groups: int = 0
    broken: int = 0
    broken_layers: int = 0
    first_broken: tuple[str, int, int, int] | None = None
    other_way: bool = field(default=True)

    @property
    def true(self) -> bool:
        """Whether there is a layer and no group breaks it."""
        return self.layers > 0 and not self.broken

    def look_at(self, layer: str, w: Tensor) -> None:
        """Counts one layer's weight w: [n, k]; a last group that overhangs k counts as padded with zeros."""
        claim = self.claim
        if not w.numel() or not claim.is_for(layer):
            return
        counts = F.pad((w != 0).byte(), (0, -w.shape[1] % claim.group)).view(w.shape[0], -1, claim.group).sum(-1)
        over = counts > claim.keep
        broken = int(over.sum())
        self.layers, self.groups, self.broken = self.layers + 1, self.groups + counts.numel(), self.broken + broken
        self.broken_layers += broken > 0
        self.other_way = self.other_way and int(counts.max()) <= claim.group - claim.keep
        if broken and self.first_broken is None:
            row, group = (int(place) for place in over.nonzero()[0])
            self.first_broken = (layer, row, group * claim.group, int(counts[row, group]))

    def __str__(self) -> str:
        claim = self.claim
        said = f"{claim.where} claims {claim.first}:{claim.group}, {claim.first} of {claim.group} {claim.counts}"
        said += f" (keeps {claim.keep} of {claim.group})"
        if not self.layers:
            return f"{said}: there is no layer that it is for"
        if self.true:
            return f"{said}: true of all {self.groups} groups in {self.layers} layers"
        layer, row, column, found = self.first_broken or ("", 0, 0, 0)
        last = column + claim.group - 1
        said += f": NOT TRUE, {self.broken} of {self.groups} groups break it, in {self.broken_layers} of {self.layers} "
        said += f"layers; the first is in {layer}, row {row}, columns {column} to {last}: {found} non-zeros"
        if self.other_way and claim.keep * 2 != claim.group:
            counted = "kept" if claim.counts == "pruned" else "pruned"
            said += f". It is true where {claim.first} of {claim.group} are meant to be {counted}"
        return said


def claims_of(config: Mapping[str, Any], where: str = "config.json") -> list[Claim]:
    """What a model's config claims by compressed-tensors' sparsity_config, which llm-compressor writes."""
    found = []
    for key in ("quantization_config", "compression_config"):
        outer = config.get(key)
        sparsity = outer.get("sparsity_config") if isinstance(outer, Mapping) else None
        if isinstance(sparsity, Mapping):
            ignored = sparsity.get("ignore")
            names = tuple(name for name in ignored if isinstance(name, str)) if isinstance(ignored, list) else ()
            text = str(sparsity.get("sparsity_structure"))
            found += _claims([text], f"the sparsity_structure of {where} (llm-compressor)", names)
    return found


def recipe_claims(folder: Path) -> list[Claim]:
    """What llm-compressor's recipe.yaml beside the weights claims."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return []
    with recipe.open("rb") as file:
        text = file.read(LARGEST_RECIPE).decode("utf-8", "replace")
    return _claims(
        dict.fromkeys(_RECIPE.findall(text)), "the mask_structure of recipe.yaml (llm-compressor)", ("lm_head",)
    )


def _claims(texts: Iterable[str], where: str, ignored: tuple[str, ...]) -> list[Claim]:
    found = []
    for text in texts:
        ratio = _RATIO.fullmatch(text)
        first, group = (int(side) for side in ratio.groups()) if ratio else (0, 0)
        if 0 < first < group:  # "0:0" and "unstructured" claim nothing of that kind
            found.append(Claim(first, group, "pruned", where, ignored))
    return found


def _matches(pattern: str, layer: str) -> bool:
    """compressed-tensors' `re:` patterns as far as they are text with `.*` in it; no pattern of a file's is run."""
    if not pattern.startswith("re:"):
        return False
    parts = [part.replace("\\.", ".").strip("^$") for part in pattern.removeprefix("re:").split(".*")]
    place = 0
    for part in parts:
        place = layer.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True
