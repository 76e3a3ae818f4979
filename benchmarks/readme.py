"""python -m benchmarks readme: the README's tables, from the committed result files and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.check import rows_of
from benchmarks.results import ROOT, Result, committed
from benchmarks.shapes import TINY
from benchmarks.tables import geomean

Row = dict[str, Any]
README = ROOT.parent / "README.md"
BEGIN = "<!-- results: written by `make readme` from benchmarks/results, not by hand -->"
END = "<!-- end of results -->"
UNMEASURED = "\N{EN DASH}"
DENSE = ("stock_us", "compiled_us", "best_dense_kernels_us", "dense_us")  # of a model's row, where it holds them
PEERS_OF = {"block": "torch's own BSR", "unstr": "torch's own CSR"}


def main(console: Console, *, write: bool) -> int:
    """Writes the tables anew; or only says, by 1, that they are stale."""
    text = README.read_text(encoding="utf-8")
    fresh = updated(text)
    if write:
        README.write_text(fresh, encoding="utf-8")
        console.print(f"wrote {README.name}", highlight=False)
        return 0
    if fresh != text:
        console.print(f"{README.name} is stale: run make readme", highlight=False)
        return 1
    return 0


def updated(text: str, folder: Path = ROOT / "results") -> str:
    """The README's text with tables that say what the result files in `folder` say."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{tables(folder)}\n{END}{after}"


def tables(folder: Path) -> str:
    """All tables, one section for each device."""
    found = list(committed(folder).values())
    parts = [section(suites) for suites in found]
    if not any(part["device"]["sm"] for suites in found for results in suites.values() for part in results):
        parts.append("Not measured on a GPU.")
    return "\n\n".join(parts)


def section(suites: dict[str, list[Result]]) -> str:
    """A device: what it is and when it was measured, then layers and models."""
    newest = max((part for parts in suites.values() for part in parts), key=lambda part: str(part["date"]))
    facts = newest["device"]
    versions = f"torch {facts['torch']}"
    if facts["sm"]:
        versions += f", {facts['sm']}, {facts['power_limit']}, driver {facts['driver']}, Triton {facts['triton']}"
    lines = [f"### {facts['name'] if facts['sm'] else facts['cpu']}, {versions}"]
    mode = "graph" if facts["sm"] else "eager"
    if parts := suites.get("ops"):
        lines.append(_layers(rows_of(parts), mode, _when(parts)))
    if parts := suites.get("models"):
        lines.append(_models(rows_of(parts), mode, _when(parts)))
    if parts := suites.get("train"):
        lines.append(_train(rows_of(parts), _when(parts)))
    return "\n\n".join(lines)


def _when(parts: Iterable[Result]) -> str:
    newest = max(parts, key=lambda part: str(part["date"]))
    sha, dirty, _ = newest["commit"].partition("-dirty")
    return f"measured {newest['date'][:10]} at commit {sha[:7]}{' with changes' if dirty else ''}"


def _layers(rows: list[Row], mode: str, when: str) -> str:
    """For each dtype a table: case by rows of x, the best kernel's gain, and torch's own sparse tensors beside it."""
    ours = best_by_shape(row for row in rows if row["op"] != "peer" and _plain(row, mode))
    peers = best_by_shape(row for row in rows if row["op"] == "peer" and row["speedup"] and _plain(row, mode))
    shapes = sorted({shape for held in ours.values() for shape in held})
    how = "replayed CUDA graphs" if mode == "graph" else "one thread"
    text = [
        f"**Layers** ({', '.join(shapes)}; weights not in the cache, {how}; {when}). Gain over the best dense "
        "kernel of each shape: the geometric mean, and in brackets the worst shape; a star marks a mean over fewer "
        f"shapes than these, and {UNMEASURED} is not measured. Under 1.00x sparse loses, and a plan keeps dense."
    ]
    for dtype in dict.fromkeys(key[0] for key in ours):
        counts = sorted({key[4] for key in ours if key[0] == dtype})
        text.append(f"{dtype}\n\n" + _grid(counts, _cases(ours, peers, dtype, counts, len(shapes))))
    return "\n\n".join(text)


def _plain(row: Row, mode: str) -> bool:
    """Forward products of real layers, called in that mode, on a CPU by one thread."""
    forward = row.get("product", "y") == "y" and row["shape"] not in TINY
    return forward and row["mode"] == mode and (mode == "graph" or row["threads"] == 1)


def best_by_shape(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[str, float]]:
    """(dtype, pattern, density, mask, rows of x) -> shape -> gain of its fastest kernel; 0 where every one is wrong."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        key = (row["dtype"], row["pattern"], row["density"], row["mask"], row["m"])
        held = found.setdefault(key, {})
        held[row["shape"]] = max(held.get(row["shape"], 0.0), row["speedup"] or 0.0)
    return found


def _cases(
    ours: dict[tuple[Any, ...], dict[str, float]],
    peers: dict[tuple[Any, ...], dict[str, float]],
    dtype: str,
    counts: list[int],
    shapes: int,
) -> Iterator[list[str]]:
    for case in dict.fromkeys(key[1:4] for key in ours if key[0] == dtype):
        pattern, density, mask = case
        name = f"{pattern}, {1 - density:.0%} zeros" + ("" if mask == "random" else f", {mask}")
        yield [name, *(_gain(ours.get((dtype, *case, m)), shapes) for m in counts)]
        theirs = [peers.get((dtype, *case, m)) for m in counts]
        if any(theirs):
            yield [f"*the same in {PEERS_OF.get(pattern[:5], 'torch')}*", *(_gain(each, shapes) for each in theirs)]


def _gain(held: dict[str, float] | None, shapes: int) -> str:
    """The mean gain and the worst, with a star where not every shape was measured."""
    if not held:
        return UNMEASURED
    worst = min(held.values())
    star = "*" if len(held) < shapes else ""
    return "wrong" if worst == 0 else f"{geomean(list(held.values())):.2f}x ({worst:.2f}x){star}"


def _grid(counts: Iterable[int], lines: Iterable[list[str]]) -> str:
    header = ["zeros", *(f"{m} row{'s' if m > 1 else ''}" for m in counts)]
    return _markdown(header, lines)


def best_dense_us(row: Row) -> float:
    """The fastest of all the ways to run a model dense that its row holds, whichever of them the row compares with."""
    return min(float(row[name]) for name in DENSE if row.get(name))


def _models(rows: list[Row], mode: str, when: str) -> str:
    header = ["model", "zeros", "batch x tokens", "dtype", "stock", "best dense", "converted", "gain"]
    lines = []
    for row in rows:
        if row["mode"] != mode or (mode == "eager" and row["threads"] != 1):
            continue
        dense = best_dense_us(row)
        gain = "wrong" if row["speedup"] is None else f"{dense / row['sparse_us']:.2f}x"
        lines.append(
            [
                row["model"], f"{row['pattern']}, {1 - row['density']:.0%}", f"{row['batch']}x{row['tokens']}",
                row["dtype"], *(_ms(us) for us in (row["stock_us"], dense, row["sparse_us"])),
                f"{gain} (no difference)" if row["no_difference"] and row["speedup"] else gain,
            ]
        )  # fmt: skip
    return (
        f"**Models** (latency in ms; {when}). Best dense is the fastest way found to run the same model without its "
        "zeros; the gain is over that.\n\n" + _markdown(header, lines)
    )


STORAGES = {
    "dense": "moments for every weight",
    "compact": "moments for kept weights",
    "values": "values alone, as a converted layer has them",
}
WAYS = {
    "plain": "nn.Linear, masked optimizer",
    "masked": "MaskedLinear, masked optimizer",
    "converted": "converted, trainable",
}


def _train(rows: list[Row], when: str) -> str:
    fewest = min(row["threads"] for row in rows)  # 1 where the CPU computes, its own number where a GPU does
    alone = [row for row in rows if row["threads"] == fewest]
    steps, layers = ([row for row in alone if (row["op"] == "layer_step") == of] for of in (False, True))
    unit = "ms, one thread" if fewest == 1 else "ms"
    tables = [f"**Training** ({unit}; {when})."] + ([_optimizer_steps(steps)] if steps else [])
    if layers:
        about = (
            "A whole step of one layer: y, dx, dw and the optimizer's. Torch's own is under a float mask; best "
            "dense is that with oneDNN's products where they are faster, and the gain is over it."
        )
        tables.append(f"{about}\n\n" + _layer_steps(layers))
    return "\n\n".join(tables)


def _optimizer_steps(rows: list[Row]) -> str:
    header = ["optimizer step", "zeros", "dtype", "torch, float mask", "ajour", "gain"]
    lines = [
        [
            f"{row['op']}, {STORAGES[row['config']]}", _zeros(row), row["dtype"], _ms(row["dense_us"]),
            _ms(row["sparse_us"]), _step_gain(row),
        ]
        for row in rows
    ]  # fmt: skip
    return _markdown(header, lines)


def _layer_steps(rows: list[Row]) -> str:
    header = ["layer", "zeros", "dtype", "torch", "best dense", "ajour", "gain"]
    lines = [
        [
            f"{row['shape']}, {row['m']} rows: {WAYS[row['config']]}", _zeros(row), row["dtype"], _ms(row["today_us"]),
            _ms(row["dense_us"]), _ms(row["sparse_us"]), _step_gain(row),
        ]
        for row in rows
    ]  # fmt: skip
    return _markdown(header, lines)


def _zeros(row: Row) -> str:
    return f"{row['pattern']}, {1 - row['density']:.0%}"


def _step_gain(row: Row) -> str:
    return "wrong" if row["speedup"] is None else f"{row['speedup']:.2f}x"


def _ms(us: float) -> str:
    return f"{us / 1000:.3g}" if us < 1e6 else f"{us / 1000:.0f}"


def _markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(each) + " |" for each in (header, rule, *lines))
