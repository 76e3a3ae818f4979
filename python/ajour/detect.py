"""detect: which patterns a weight's zeros fit. Exact, never guessed, whatever a recipe or a file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ajour._native import native
from ajour.memory import DTYPES, on_host, view, why_unreadable
from ajour.terms.errors import PatternError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured

SKIPPED = 0.9  # a structured pattern explains a weight if it skips this share of all zeros
FILLED = 0.5  # and if this share of what it stores is not zero


@dataclass(frozen=True)
class Detection:
    """What a weight [n, k] holds. `patterns` are all that fit, the most useful first and Dense() last."""

    shape: tuple[int, int]
    dtype: str  # as torch names it, without "torch."
    nonzeros: int
    density: float  # nonzeros / (n * k), 0.0 for an empty weight
    zero_rows: int
    zero_cols: int
    pattern: Pattern
    patterns: tuple[Pattern, ...]
    live_blocks: dict[tuple[int, int], int]  # (rows, cols) -> blocks that hold a non-zero
    keeps: dict[int, int]  # group -> most non-zeros in any of its groups
    beyond_two: int  # non-zeros beyond the first two of their group of four: what a 2:4 part has no room for


def detect(w: Tensor) -> Detection:
    """Finds every pattern that w: [n, k] fits exactly; a zero is +0.0 or -0.0, all else (NaN, Inf, subnormals) is not.

    N:M:    for groups of 2, 4, 8, 16, 32 along a row the smallest `keep`, if that stores less than all; one of the
            same ratio as a finer one (4:8 beside 2:4) is left out. A last group that overhangs k counts as padded with
            zeros.
    Blocks: squares of 4 to 128, and 4, 8, 16 or 32 by 1 and 1 by 4, 8, 16 or 32, where they fit into the weight. Any
            zeros can be stored in any blocks, so a size is listed where it explains them: at least 90 % of all zeros
            lie in dead blocks, and at least half of what the live blocks hold is not zero. A size is left out if a
            listed one is as large and stores no more elements (16x16 beside 32x32 for a mask of 32x32 blocks).
    Unstructured() wherever there is a zero, and Dense() always.

    `pattern` is the first of `patterns`: of those that explain the zeros (an N:M pattern by the same two numbers) the
    one that stores the fewest elements, at equality blocks, larger ones first, before N:M; if there is none, the
    unstructured one, if there are zeros at all.

    w: float32, float16, bfloat16 or float64 on any device; on the CPU it is read once, on torch's threads. Raises
    PatternError if w is not 2-D, not floating point, or has no memory of its own to read.
    """
    if w.dim() != 2:
        raise PatternError(f"detect looks at a 2-D weight [n, k], found {w.dim()}-D {tuple(w.shape)}")
    if w.dtype not in DTYPES:
        expected = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise PatternError(f"detect looks at weights of {expected}, found {str(w.dtype).removeprefix('torch.')}")
    if reason := why_unreadable(w):
        raise PatternError(f"detect can't read the weight: it {reason}")
    n, k = w.shape
    w = on_host(w)
    found = native.census(view(w))
    patterns = _patterns(found, n, k)
    return Detection(
        shape=(n, k),
        dtype=str(w.dtype).removeprefix("torch."),
        nonzeros=found["nonzeros"],
        density=found["nonzeros"] / (n * k) if n * k else 0.0,
        zero_rows=found["zero_rows"],
        zero_cols=found["zero_cols"],
        pattern=patterns[0],
        patterns=patterns,
        live_blocks={size: live for size, (live, _) in found["blocks"].items()},
        keeps=found["keeps"],
        beyond_two=found["beyond_two"],
    )


def _patterns(found: dict[str, Any], n: int, k: int) -> tuple[Pattern, ...]:
    """All that fit, the most useful first."""
    size, nonzeros = n * k, found["nonzeros"]
    if nonzeros == size:
        return (Dense(),)

    def explains(stored: int) -> bool:
        return bool(size - stored >= SKIPPED * (size - nonzeros) and nonzeros >= FILLED * stored)

    stored = {Block(*side): stored for side, (_, stored) in found["blocks"].items() if side[0] <= n and side[1] <= k}
    blocks = _undominated({block: stored for block, stored in stored.items() if explains(stored)})
    nms = _nms(found["keeps"], n, k)
    fitting: list[tuple[NM | Block, int]] = [*blocks.items(), *nms.items()]
    structured = sorted(fitting, key=lambda item: (item[1], _rank(item[0])))
    useful = [pattern for pattern, stored in structured if explains(stored)]
    rest = [pattern for pattern, _ in structured if pattern not in useful]
    return (*useful, Unstructured(), *rest, Dense())


def _undominated(stored: dict[Block, int]) -> dict[Block, int]:
    """Without the sizes for which another is as large and stores no more elements."""

    def is_better(block: Block, than: Block) -> bool:
        if block.rows * block.cols == than.rows * than.cols:
            return stored[block] < stored[than]
        return block.rows * block.cols > than.rows * than.cols and stored[block] <= stored[than]

    return {block: count for block, count in stored.items() if not any(is_better(other, block) for other in stored)}


def _nms(keeps: dict[int, int], n: int, k: int) -> dict[NM, int]:
    """Elements stored by each N:M pattern that no finer one implies."""
    kept: dict[NM, int] = {}
    for group, most in keeps.items():
        keep = max(1, most)
        stored = n * -(-k // group) * keep
        implied = any(keep * finer.group == finer.keep * group for finer in kept)
        if keep < group and stored < n * k and not implied:
            kept[NM(keep, group)] = stored
    return kept


def _rank(pattern: NM | Block) -> tuple[int, int]:
    """Among patterns that store as many elements: blocks before N:M, larger blocks and finer groups first."""
    if isinstance(pattern, Block):
        return (0, -pattern.rows * pattern.cols)
    return (1, pattern.group)
