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
_RECIPE = re.compile(r"mask_structure[\"']?\s*[:=]\s*[\"']?(\d{1,3}:\d{1,3})")
_TOKEN = re.compile(r"(\\[.d]|[\w./-])([*+?]?)", re.ASCII)


@dataclass(frozen=True)
class Claim:
    """`first`:`group`, of which `first` are pruned (`counts` is "pruned") or kept. where: who claims it.

    ignored: layers that it is not made for. targets: the ones that it is made for, () for all.
    """

    first: int
    group: int
    counts: str
    where: str
    ignored: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    @property
    def keep(self) -> int:
        """How many of a group it says are kept."""
        return self.group - self.first if self.counts == "pruned" else self.first

    def is_for(self, layer: str) -> bool | None:
        """Whether it is made for that layer; None if its patterns are of a kind that is not understood."""
        left_out = _any(self.ignored, layer)
        meant = _any(self.targets, layer, inside=True) if self.targets else True
        if left_out or meant is False:
            return False
        return None if left_out is None or meant is None else True


@dataclass
class Checked:
    """A claim after looking at the zeros of every layer that it is made for.

    first_broken: (layer, row, first column, non-zeros) of the first group that keeps more than the claim says.
    other_way: whether every group keeps no more than the other convention would say.
    unclear: layers that it may or may not be made for, which are left out of all this.
    """

    claim: Claim
    layers: int = 0
    groups: int = 0
    broken: int = 0
    broken_layers: int = 0
    first_broken: tuple[str, int, int, int] | None = None
    other_way: bool = field(default=True)
    unclear: int = 0

    @property
    def true(self) -> bool:
        """Whether there is a layer, no group breaks it, and it is known which layers are meant."""
        return self.layers > 0 and not self.broken and not self.unclear

    def look_at(self, layer: str, w: Tensor) -> None:
        """Counts one layer's weight w: [n, k]; a last group that overhangs k counts as padded with zeros."""
        claim = self.claim
        meant = claim.is_for(layer)
        self.unclear += meant is None
        if not w.numel() or not meant:
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
        if self.unclear and not self.broken:
            return f"{said}: can't tell, as it names its layers in a way that is not understood ({self.unclear} layers)"
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
            text = sparsity.get("sparsity_structure")
            said_by = f"the sparsity_structure of {where} (llm-compressor)"
            ignored, targets = _strings(sparsity.get("ignore")), _strings(sparsity.get("targets"))
            found += _claims([text] if isinstance(text, str) else [], said_by, ignored, targets)
    return found


def _strings(names: object) -> tuple[str, ...]:
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def recipe_claims(folder: Path) -> list[Claim]:
    """What llm-compressor's recipe.yaml beside the weights claims."""
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        return []
    with recipe.open("rb") as file:
        text = file.read(LARGEST_RECIPE).decode("utf-8", "replace")
    lines, found = text.splitlines(), []
    for place, line in enumerate(lines):
        if claimed := _RECIPE.findall(line):
            block = _block(lines, place)
            ignored = _listed(block, "ignore")
            found += _claims(
                claimed, "the mask_structure of recipe.yaml (llm-compressor)",
                ("lm_head",) if ignored is None else ignored, _listed(block, "targets") or (),
            )  # fmt: skip
    return list(dict.fromkeys(found))


def _block(lines: list[str], place: int) -> str:
    """The lines around one that are indented as it is, or deeper: one modifier of a recipe."""

    def depth(line: str) -> int:
        return len(line) - len(line.lstrip()) if line.strip() else len(line) + 1000

    here, first, last = depth(lines[place]), place, place + 1
    while first and depth(lines[first - 1]) >= here:
        first -= 1
    while last < len(lines) and depth(lines[last]) >= here:
        last += 1
    return "\n".join(lines[first:last])


def _listed(block: str, key: str) -> tuple[str, ...] | None:
    """A list of YAML under a key, in brackets or a line for each item; a lone value is a list of one."""
    found = re.search(rf"\b{key}[\"']?[ ]*[:=][ ]*(\[[^\]]*\]|[^\n,}}]+|(?:\n[ ]*-[ ][^\n]*)+)", block)
    if found is None:
        return None
    said = found[1].strip()
    items = re.split(r"\n[ ]*-[ ]", "\n" + said) if said.startswith("- ") else said.strip("[]").split(",")
    return tuple(name for item in items if (name := item.strip().strip("\"'")))


def _claims(texts: Iterable[str], where: str, ignored: tuple[str, ...], targets: tuple[str, ...] = ()) -> list[Claim]:
    found = []
    for text in texts:
        ratio = _RATIO.fullmatch(text)
        first, group = (int(side) for side in ratio.groups()) if ratio else (0, 0)
        if 0 < first < group:  # "0:0" and "unstructured" claim nothing of that kind
            found.append(Claim(first, group, "pruned", where, ignored, targets))
    return found


def _any(names: Iterable[str], layer: str, *, inside: bool = False) -> bool | None:
    """Whether one of the names or patterns means the layer; None if none does and one can't be told.

    inside: whether one that means a block of the model means the layers in it, too.
    """
    paths = [layer]
    while inside and "." in paths[-1]:
        paths.append(paths[-1].rpartition(".")[0])
    found: bool | None = False
    for name in names:
        if name.startswith("re:"):
            tokens = _tokens(name.removeprefix("re:"))
            meant = None if tokens is None else any(_matches(tokens, path) for path in paths)
        elif name in (*paths, layer.rpartition(".")[2]) or name == "Linear":
            meant = True
        else:  # of a layer of another class nothing but its name is known here
            meant = None if name[:1].isupper() and "." not in name else False
        if meant:
            return True
        found = None if meant is None else found
    return found


def _tokens(pattern: str) -> list[tuple[str, str]] | None:
    """[(what a character may be, how often)] of a pattern that is text, `.` and `\\d` with `*`, `+` and `?`; else None.

    Such a pattern begins where the name does, and ends where that ends only with `$`. No pattern of a file's is run by
    `re`, as it could take forever.
    """
    pattern = pattern.removeprefix("^")
    body = pattern.removesuffix("$")
    tokens: list[tuple[str, str]] = _TOKEN.findall(body)
    if "".join(kind + often for kind, often in tokens) != body or len(body) > 1000:
        return None
    return tokens if body != pattern else [*tokens, (".", "*")]


def _matches(tokens: list[tuple[str, str]], name: str) -> bool:
    """Every place of the pattern that may have been reached, character by character."""

    def reached(places: set[int]) -> set[int]:
        for place in range(len(tokens)):
            if place in places and tokens[place][1] in ("*", "?"):
                places.add(place + 1)
        return places

    places = reached({0})
    for character in name:
        following = set()
        for place in places - {len(tokens)}:
            kind, often = tokens[place]
            if kind == "." or (kind[-1] == character and kind != "\\d") or (kind == "\\d" and character.isdecimal()):
                following |= {place, place + 1} if often in ("*", "+") else {place + 1}
        places = reached(following)
    return len(tokens) in places
