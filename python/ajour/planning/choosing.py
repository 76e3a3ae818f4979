"""From times to a choice: pure rules, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ajour.planning.plan import Measurement, RowChoice
from ajour.planning.timing import Timing, differ
from ajour.terms.pattern import Dense, Pattern

DEFAULT_MARGIN = 0.05
FORMS = 3  # packed forms of one layer that are considered at once, dense not counted
SMALLER_WINS = 1.02  # a choice with fewer bytes may be this much slower than the fastest


@dataclass(frozen=True)
class Timed:
    """A sparse candidate with its times by rows; candidates of one `packing` share the tensors they read.

    A packing that differs by configuration has the configuration in its name."""

    op: str
    stored: Pattern
    kernel: str
    config: str
    packing: str
    nbytes: int
    times: Mapping[int, Timing]


@dataclass(frozen=True)
class Times:
    """What was measured for one layer: by rows, the layer as it runs today and each dense kernel; sparse candidates."""

    today: Mapping[int, Timing]
    dense: Mapping[int, Mapping[str, Timing]]
    sparse: tuple[Timed, ...]

    def best_dense(self, rows: int) -> tuple[str, Timing]:
        """(kernel, time) of the fastest dense, today's own way included (as `aten`)."""
        known = {"aten": self.today[rows]} | dict(self.dense[rows])
        return min(known.items(), key=lambda item: item[1].best)


@dataclass(frozen=True)
class Decision:
    """What a layer gets; op "" keeps it as it is."""

    op: str
    stored: Pattern | None
    kernels: tuple[RowChoice, ...]
    measurements: tuple[Measurement, ...]
    nbytes: int
    reason: str


@dataclass(frozen=True)
class _Option:
    """One way to serve all rows: for each measured count a sparse candidate or the name of a dense kernel."""

    picks: tuple[tuple[int, Timed | str], ...]
    cost: float
    nbytes: int


def beats(margin: float | None, mine: Timing, dense: Timing) -> bool:
    """Whether a time beats dense by the margin, and by more than the spread; None: in any case."""
    return margin is None or (dense.best >= (1 + margin) * mine.worst and differ(mine, dense))


def decide(
    times: Times, dense_bytes: int, margin: float | None, memory: float, nothing: str = "nothing sparse was measured"
) -> Decision:
    """The choice for one layer.

    Sparse must beat the best dense by `margin` (None: the best sparse in any case). Rows that disagree need both packed
    forms within memory * dense_bytes, a kept dense copy counted; without room one form serves all rows, by the sum of
    times, if it beats dense by `margin` in sum and loses to it nowhere. Without a sparse winner, another dense kernel
    is taken if it beats today's. Between measured rows the larger one's choice holds. An unsteady time counts by its
    end: dense and today by the fastest turn, whatever should beat them by its p80. `nothing` is the reason where no
    sparse candidate was measured.
    """
    rows = sorted(times.today)
    options = [
        option
        for group in _groups(times.sparse)
        for option in _options(group, times, rows, dense_bytes, margin, memory * dense_bytes)
    ]
    if options:
        fastest = min(option.cost for option in options)
        best = min((o for o in options if o.cost <= fastest * SMALLER_WINS), key=lambda o: (o.nbytes, o.cost))
        return _sparse(best, times)
    bar = DEFAULT_MARGIN if margin is None else margin
    return _dense(
        times,
        rows,
        dense_bytes,
        bar,
        nothing if not times.sparse else _why_dense(times, rows, dense_bytes, margin, memory),
    )


def _groups(sparse: Sequence[Timed]) -> list[list[Timed]]:
    """Candidates that one layer can hold together: of one op and one stored pattern."""
    groups: dict[tuple[str, Pattern], list[Timed]] = {}
    for timed in sparse:
        groups.setdefault((timed.op, timed.stored), []).append(timed)
    return list(groups.values())


def _options(
    group: Sequence[Timed], times: Times, rows: Sequence[int], dense_bytes: int, margin: float | None, cap: float
) -> Iterator[_Option]:
    forms = {timed.packing: timed.nbytes for timed in group}
    for size in range(1, min(FORMS, len(forms)) + 1):
        for held in combinations(forms, size):
            nbytes = sum(forms[form] for form in held)
            members = [timed for timed in group if timed.packing in held]
            if nbytes > cap and not (margin is None and size == 1):
                continue
            option = _without_dense(members, times, rows, margin)
            if option:
                yield _Option(*option, nbytes)
            if margin is not None and nbytes + dense_bytes <= cap:
                option = _beside_dense(members, times, rows, margin)
                if option:
                    yield _Option(*option, nbytes + dense_bytes)


def _fastest(members: Sequence[Timed], m: int) -> Timed | None:
    return min((t for t in members if m in t.times), key=lambda t: t.times[m].worst, default=None)


def _to_speak_of(members: Sequence[Timed], m: int) -> Timed | None:
    """Where none won: the one that might have, were its times steady, else the fastest."""
    likeliest = min((t for t in members if m in t.times), key=lambda t: t.times[m].best, default=None)
    return _fastest(members, m) if likeliest is None or likeliest.times[m].steady else likeliest


def _without_dense(
    members: Sequence[Timed], times: Times, rows: Sequence[int], margin: float | None
) -> tuple[tuple[tuple[int, Timed | str], ...], float] | None:
    """Sparse at every number of rows; None if that loses to dense somewhere, or wins too little in sum."""
    picks = []
    cost = dense_cost = 0.0
    won = False
    for m in rows:
        mine, (_, dense) = _fastest(members, m), times.best_dense(m)
        if mine is None or (margin is not None and mine.times[m].worst > dense.best):
            return None
        picks.append((m, mine))
        cost += mine.times[m].worst
        dense_cost += dense.best
        won |= beats(margin, mine.times[m], dense)
    if margin is not None and not (won and dense_cost >= (1 + margin) * cost):
        return None
    return tuple(picks), cost


def _beside_dense(
    members: Sequence[Timed], times: Times, rows: Sequence[int], margin: float
) -> tuple[tuple[tuple[int, Timed | str], ...], float] | None:
    """At each number of rows the better of sparse and dense; None if sparse wins nowhere."""
    picks: list[tuple[int, Timed | str]] = []
    cost = 0.0
    for m in rows:
        mine, (name, dense) = _fastest(members, m), times.best_dense(m)
        if mine is not None and beats(margin, mine.times[m], dense):
            picks.append((m, mine))
            cost += mine.times[m].worst
        else:
            picks.append((m, name))
            cost += dense.best
    if not any(isinstance(pick, Timed) for _, pick in picks):
        return None
    return tuple(picks), cost


def _sparse(option: _Option, times: Times) -> Decision:
    chosen = next(pick for _, pick in option.picks if isinstance(pick, Timed))
    kernels = [
        RowChoice(m, pick.kernel, pick.config) if isinstance(pick, Timed) else RowChoice(m, pick)
        for m, pick in option.picks
    ]
    measurements = tuple(_measurement(times, m, pick) for m, pick in option.picks)
    gain = sum(m.dense_us for m in measurements) / option.cost
    mixed = [m for m, pick in option.picks if isinstance(pick, str)]
    least = "" if all(m.steady for m in measurements) else "at least "
    reason = f"{least}{gain:.2f}x over the best dense"
    if mixed:
        reason += f"; dense stays at {_numbers(mixed)} rows, where it is faster"
    return Decision(chosen.op, chosen.stored, merge(kernels), measurements, option.nbytes, reason)


def _dense(times: Times, rows: Sequence[int], dense_bytes: int, bar: float, reason: str) -> Decision:
    kernels = []
    for m in rows:
        name, best = times.best_dense(m)
        kernels.append(RowChoice(m, name if beats(bar, best, times.today[m]) else "aten"))
    measurements = tuple(_measurement(times, m, _to_speak_of(times.sparse, m)) for m in rows)
    if all(entry.kernel == "aten" for entry in kernels):
        return Decision("", None, (), measurements, dense_bytes, reason)
    return Decision("dense_linear", Dense(), merge(kernels), measurements, dense_bytes, reason)


def _why_dense(times: Times, rows: Sequence[int], dense_bytes: int, margin: float | None, memory: float) -> str:
    if margin is None:
        return "no one form serves every number of rows"
    verdicts = []
    for m in rows:
        mine, (name, dense) = _fastest(times.sparse, m), times.best_dense(m)
        if mine is not None:
            won = beats(margin, mine.times[m], dense)
            mine = mine if won else _to_speak_of(times.sparse, m) or mine
            verdicts.append((dense.best / mine.times[m].worst, m, mine, name, won))
    doubtful = [v for v in verdicts if not v[-1] and not (v[2].times[v[1]].steady and times.best_dense(v[1])[1].steady)]
    gain, m, mine, name, won = max(doubtful or verdicts, key=lambda v: v[0])
    at = f"at {m} row{'s' if m != 1 else ''}"
    if doubtful and not gain:
        return f"dense ({name}) never had its cores to itself {at}, so no time of it can be believed"
    if doubtful:
        return f"unsteady times {at}: {mine.kernel} at its slowest is {gain:.2f}x of dense ({name}) at its fastest"
    if won:
        least = min(timed.nbytes for timed in times.sparse) / max(1, dense_bytes)
        if least > memory:
            return (
                f"{mine.kernel} wins {at} ({gain:.2f}x), but its {least:.2f} of dense's bytes exceed memory={memory:g}"
            )
        return (
            f"{mine.kernel} wins {at} ({gain:.2f}x) and dense at others; memory={memory:g} has no room for both "
            f"forms, memory={least + 1:.2f} would"
        )
    if gain >= 1 + margin:
        return f"no difference {at}: {mine.kernel} {gain:.2f}x, within the spread"
    word = "gains too little" if gain > 1 else "is slower"
    return f"{mine.kernel} {word} {at}: {gain:.2f}x of dense ({name}), the margin is {1 + margin:.2f}x"


def _measurement(times: Times, m: int, pick: Timed | str | None) -> Measurement:
    name, dense = times.best_dense(m)
    shown = pick if isinstance(pick, Timed) else _fastest(times.sparse, m)
    sparse = None if shown is None else shown.times[m]
    known = [timing for timing in (dense, times.today[m], sparse) if timing is not None]
    unknown = min(timing.worst for timing in known)  # of a bar that never ran undisturbed: no gain comes of it
    return Measurement(
        rows=m,
        dense_us=round(dense.best or unknown, 3),
        dense_kernel=name,
        today_us=round(times.today[m].best or unknown, 3),
        sparse_us=None if sparse is None else round(sparse.worst, 3),
        sparse_kernel=None if shown is None else shown.kernel,
        spread=round(max(timing.spread for timing in known), 3),
        steady=all(timing.steady for timing in known),
    )


def merge(kernels: Sequence[RowChoice]) -> tuple[RowChoice, ...]:
    """Neighbours that agree become one entry; the last one has no limit."""
    merged: list[RowChoice] = []
    for entry in kernels:
        if merged and (merged[-1].kernel, merged[-1].config) == (entry.kernel, entry.config):
            merged.pop()
        merged.append(entry)
    merged[-1] = RowChoice(None, merged[-1].kernel, merged[-1].config)
    return tuple(merged)


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
