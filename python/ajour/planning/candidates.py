"""What is worth timing for a layer: the patterns to store it in, and the kernels and configurations that take it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ajour.detect import Detection
from ajour.ops import LINEAR_OPS
from ajour.ops.gradients import why_not_trained
from ajour.ops.library import LinearOp
from ajour.terms.errors import PatternError, PlanError
from ajour.terms.pattern import NM, Block, Dense, Pattern, Unstructured, as_pattern
from ajour.terms.problem import Problem

LEANEST = 2.0  # a pattern that stores more than this many times the leanest one's elements is hopeless
COARSER = 1.2  # a larger block may store this many times the elements of the detected one and still win
FRIENDLY = (Block(32, 32), Block(16, 16))  # what block kernels are fastest at on a CPU
# The share of the dense rate that tensor cores can keep by a block's shorter side (what feeds them bounds it; not
# measured on a GPU), and how much longer than the best size by that estimate another one may take and still be tried.
GPU_SHARES = {16: 0.35, 32: 0.5, 64: 0.75, 128: 0.85}
GPU_SLOWER = 1.5
# A split weight needs more bytes than a bitmap, and at one row bytes decide; at many the chunked kernel does as well
# with all values. On three weights with half of their entries zero the split was 1.1 to 1.7 times as fast as the best
# bitmap kernel at 4 to 32 rows (bfloat16; float32: 4 and 8), and slower at 1, 2 and 64 (one thread of Zen 5).
SPLIT_ROWS = range(3, 49)
_OPS = {NM: "nm_linear", Block: "block_linear", Unstructured: "bitmap_linear"}
_BYTES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Form:
    """One way to store a layer: the pattern that its matrix has, and whether zeros anywhere are split in two parts."""

    pattern: Pattern
    split: bool = False

    @property
    def op(self) -> LinearOp:
        """The op that reads matrices of this form."""
        return LINEAR_OPS["split_linear" if self.split else _OPS[type(self.pattern)]]

    def __str__(self) -> str:
        return f"{self.pattern}, split" if self.split else str(self.pattern)


@dataclass(frozen=True)
class Candidate:
    """A kernel with a configuration, and the numbers of rows for which it is worth timing."""

    form: Form
    kernel: str
    config: str
    rows: tuple[int, ...]


def parse_formats(formats: Iterable[Pattern | str] | None) -> tuple[Pattern, ...] | None:
    """The patterns that a caller forces, from patterns or their names; raises PlanError. None: whatever is found."""
    if formats is None:
        return None
    if isinstance(formats, (str, Dense, NM, Block, Unstructured)):
        formats = [formats]
    try:
        return tuple(map(as_pattern, formats))
    except (PatternError, TypeError) as error:
        raise PlanError(f"formats: {error}") from None


def elements(found: Detection, pattern: Pattern) -> int:
    """Values that a weight stores in that pattern."""
    n, k = found.shape
    if isinstance(pattern, NM):
        return n * -(-k // pattern.group) * pattern.keep
    if isinstance(pattern, Block):
        live = found.live_blocks.get((pattern.rows, pattern.cols), -(-n // pattern.rows) * -(-k // pattern.cols))
        return live * pattern.rows * pattern.cols
    return found.nonzeros if isinstance(pattern, Unstructured) else n * k


def estimated_bytes(found: Detection, pattern: Pattern) -> float:
    """What a weight of that pattern takes at least: its values and its indices in canonical form."""
    n, k = found.shape
    stored = elements(found, pattern)
    item = _BYTES.get(found.dtype, 2)
    if isinstance(pattern, NM):
        return stored * (item + (pattern.group - 1).bit_length() / 8)
    if isinstance(pattern, Block):
        return stored * item + 4 * stored / (pattern.rows * pattern.cols)
    return stored * item + (n * k / 8 if isinstance(pattern, Unstructured) else 0)


def forms(
    found: Detection,
    formats: Sequence[Pattern] | None = None,
    *,
    at_any_price: bool = False,
    device: str = "cpu",
    trainable: bool = False,
) -> tuple[list[Form], list[str]]:
    """The forms worth timing, and a sentence for each that is not.

    `formats` forces the patterns; else those that detection found are taken, with neighbouring block sizes. What can't
    win by bytes and multiplications is left out, unless `at_any_price`, and so is what holds more explicit zeros than
    it must if `trainable`: training would make weights of them.
    """
    forced = formats is not None
    wanted = [p for p in (formats or ()) if not isinstance(p, Dense)] if forced else _worthwhile(found, device)
    leanest = min((elements(found, p) for p in wanted), default=0)
    kept: list[Form] = []
    refused: list[str] = []
    for pattern in wanted:
        reason = None
        if not at_any_price and _stores_no_less(found, pattern):
            share = elements(found, pattern) / _size(found)
            reason = f"{pattern} stores {share:.0%} of the weight, in no fewer bytes than dense"
        elif not forced:
            reason = (_why_regrown(found, pattern) if trainable else None) or _hopeless(found, pattern, wanted, leanest)
        if reason:
            refused.append(f"{reason}; it was not tried")
        else:
            kept.append(Form(pattern))
            if isinstance(pattern, Unstructured) and device == "cpu" and not trainable and _splits_well(found):
                kept.append(Form(pattern, split=True))
    return kept, list(dict.fromkeys(refused))


def _why_regrown(found: Detection, pattern: Pattern) -> str | None:
    """Why training a weight in such blocks would bring dead ones back, where it would."""
    leanest = _leanest(found)
    if leanest is None or not isinstance(pattern, Block) or elements(found, pattern) <= elements(found, leanest):
        return None
    return f"training in {pattern} would bring back what {leanest} leaves out"


def _size(found: Detection) -> int:
    n, k = found.shape
    return max(1, n * k)


def _stores_no_less(found: Detection, pattern: Pattern) -> bool:
    dense = Dense()
    fewer = elements(found, pattern) < 0.95 * elements(found, dense)
    return not fewer and estimated_bytes(found, pattern) >= estimated_bytes(found, dense)


def _splits_well(found: Detection) -> bool:
    """Whether a 2:4 part and a rest, 2 bits for each value of the one and 16 for each of the other, can pay.

    Fewer bytes than dense, and at most LEANEST values for each non-zero, as the 2:4 part fills groups up with zeros.
    """
    n, k = found.shape
    pairs, item = n * -(-k // 4) * 2, _BYTES.get(found.dtype, 2)
    nbytes = pairs * (item + 1 / 4) + found.beyond_two * (item + 2)
    few = pairs + found.beyond_two <= LEANEST * found.nonzeros
    return few and found.beyond_two > 0 and nbytes < 0.95 * n * k * item


def _hopeless(found: Detection, pattern: Pattern, others: Sequence[Pattern], leanest: int) -> str | None:
    """Why a pattern can't beat the other ones, by its bytes and its multiplications."""
    stored = elements(found, pattern)
    if stored > LEANEST * leanest:
        name = "every other N:M" if isinstance(pattern, NM) else str(pattern)
        return f"{name} stores over {LEANEST:g}x the elements of the leanest pattern"
    for other in others:
        more_regular = _regularity(other) > _regularity(pattern)
        no_bigger = estimated_bytes(found, other) <= estimated_bytes(found, pattern)
        if more_regular and no_bigger and elements(found, other) <= 1.02 * stored:
            return f"{pattern} needs no fewer bytes or multiplications than {other}, which is more regular"
    return None


def _regularity(pattern: Pattern) -> int:
    return {Unstructured: 0, NM: 1, Block: 2}.get(type(pattern), 3)


def _worthwhile(found: Detection, device: str) -> list[Pattern]:
    """The patterns found, of N:M the two leanest, and for blocks also coarser sizes that store little more."""
    nm = sorted((p for p in found.patterns if isinstance(p, NM)), key=lambda p: elements(found, p))[:2]
    rest = [p for p in found.patterns if isinstance(p, Unstructured)]
    return [*(_blocks_on_gpu(found) if device == "cuda" else _blocks(found)), *nm, *rest]


def _leanest(found: Detection) -> Block | None:
    """The listed block size that stores the fewest elements, the largest of equals."""
    listed = [p for p in found.patterns if isinstance(p, Block)]
    return min(listed, key=lambda p: (elements(found, p), -p.rows * p.cols), default=None)


def _blocks_on_gpu(found: Detection) -> list[Block]:
    """The leanest size, and those that may take tensor cores least time, explicit zeros and all: 16x16 as 32x32."""
    base = _leanest(found)
    if base is None:
        return []

    def time(size: Block) -> float:
        return elements(found, size) / GPU_SHARES[max(each for each in GPU_SHARES if each <= min(size.rows, size.cols))]

    sizes = sorted((Block(*sides) for sides in found.live_blocks if min(sides) >= min(GPU_SHARES)), key=time)
    near = [size for size in sizes if time(size) <= GPU_SLOWER * time(sizes[0])]
    return list(dict.fromkeys([base, *near]))[:3]


def _blocks(found: Detection) -> list[Block]:
    base = _leanest(found)
    if base is None:
        return []
    near = [
        size
        for size in (Block(*sides) for sides in found.live_blocks)
        if elements(found, size) <= COARSER * elements(found, base)
    ]
    chosen = [base, *(size for size in FRIENDLY if size in near)]
    if near:
        chosen.append(max(near, key=lambda p: (min(p.rows, 32) * min(p.cols, 32), -p.rows * p.cols)))
    return list(dict.fromkeys(chosen))[:3]


def candidates(
    form: Form,
    found: Detection,
    rows: Sequence[int],
    device: str,
    capability: tuple[int, int] | None,
    reference: bool,
    trainable: bool = False,
) -> tuple[list[Candidate], list[str]]:
    """Every kernel and configuration of the form's op that takes the problem at some of these rows; and the refusals.

    If `trainable` every kernel that trains there, without a configuration: each product is to find its own.

    `reference` admits the reference kernel where no other one takes the problem: it expands the weight in every call,
    so it never beats dense. A refusal reads "pattern, kernel: reason", the first one of each kernel.
    """
    taken: dict[tuple[str, str], list[int]] = {}
    refused: dict[str, str] = {}
    n, k = found.shape
    for m in rows:
        if form.split and m not in SPLIT_ROWS:
            continue
        problem = Problem(form.op.name, form.pattern, m, n, k, found.dtype, device, capability, found.density)
        before = len(taken), sum(map(len, taken.values()))
        for kernel in form.op.kernels.values():
            wanted = kernel.packing == "canonical" if trainable else kernel.planned and kernel.packing != "dense"
            if kernel.name == "reference" or not wanted:
                continue
            if reason := why_not_trained(form.op, kernel, problem) if trainable else kernel.why_not(problem):
                refused.setdefault(kernel.name, f"{form}, {kernel.name}: {reason}")
                continue
            for config in ("",) if trainable else kernel.configs(problem):
                taken.setdefault((kernel.name, config), []).append(m)
        if reference and before == (len(taken), sum(map(len, taken.values()))):
            taken.setdefault(("reference", ""), []).append(m)
    found_candidates = [Candidate(form, name, config, tuple(at)) for (name, config), at in taken.items()]
    return found_candidates, list(refused.values())
