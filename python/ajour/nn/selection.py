"""Which kernels serve a matrix here: the wanted ones where they take it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ajour.formats.matrix import SparseMatrix
from ajour.ops.functional import problem_of
from ajour.ops.gradients import CHECK_DW, training_configs, why_not_trained
from ajour.ops.library import LinearOp
from ajour.ops.prepare import Choice
from ajour.terms.errors import KernelError
from ajour.terms.kernel import Kernel, config_for
from ajour.terms.problem import Problem

MANY = 65536  # rows that stand for "any number" when a kernel without a limit is asked whether it takes them


def canonical_choice(op: LinearOp, matrix: SparseMatrix, wanted: Sequence[Choice] | None = None) -> tuple[Choice, ...]:
    """Kernels that read the canonical form itself: for training, and on `meta` where nothing runs.

    `wanted` if all of these do and take the matrix, as those of a plan for training do: it names the kernel and
    "forward / dx / dw", each measured. A plan for inference says nothing of these, as packed values can't be trained.
    Then, and for a layer that is built by hand, it is the first kernel of the op's table that takes the matrix, with
    the first configuration of each product, which stand in `layer.kernels`.
    """
    if matrix.device.type != "meta":
        reads_it = wanted is not None and all(op.kernel(name).packing == "canonical" for _, name, _ in wanted)
        if wanted and reads_it and why_not(op, matrix, "none", wanted) is None:
            return tuple(wanted)
        problem = problem_of(matrix, MANY)
        for kernel in op.kernels.values():
            if kernel.packing == "canonical" and why_not_trained(op, kernel, problem) is None:
                parts = [configs[0] for configs in training_configs(op, kernel, problem)]
                return ((None, kernel.name, config_for(parts)),)
    return ((None, "reference" if "reference" in op.kernels else "aten", ""),)


def why_not(op: LinearOp, matrix: SparseMatrix, activation: str, choices: Sequence[Choice]) -> str | None:
    """None if every named kernel takes this matrix at some number of its rows, else a refusal in one sentence.

    A kernel that is no good at other rows says so for the planner's sake; it is right at any. A configuration must be
    one that this build runs: a plan may come from another. Raises KernelError for a kernel that the op does not have.
    """
    problem = problem_of(matrix, 1, activation)
    lowest = 1
    for limit, name, config in choices:
        kernel = op.kernel(name)
        refusals = [kernel.why_not(replace(problem, m=m)) for m in _between(lowest, limit or max(lowest, MANY))]
        if all(refusals):
            return f"kernel {name!r} refuses it: {refusals[0]}"
        if refusal := _why_not_config(op, kernel, problem, config):
            return f"kernel {name!r} can't run its configuration: {refusal}"
        lowest = (limit or 0) + 1
    return None


def select(op: LinearOp, matrix: SparseMatrix, activation: str, wanted: Sequence[Choice] | None) -> tuple[Choice, ...]:
    """`wanted` where it takes the matrix, else the first kernel of the op's table that takes any number of rows."""
    if matrix.device.type == "meta":
        return canonical_choice(op, matrix)
    if wanted and why_not(op, matrix, activation, wanted) is None:
        return tuple(wanted)
    problem = problem_of(matrix, MANY, activation)
    takers = [kernel for kernel in op.kernels.values() if kernel.why_not(replace(problem, m=1)) is None]
    kernel = next((kernel for kernel in takers if kernel.why_not(problem) is None), None) or op.first(problem)
    return ((None, kernel.name, kernel.configs(problem)[0]),)


def _why_not_config(op: LinearOp, kernel: Kernel, problem: Problem, config: str) -> str | None:
    """None for the empty one, which every kernel takes, and for what the kernel knows, at whatever number of rows."""
    if not config:
        return None
    if kernel.check is not None:
        try:
            kernel.check(problem, config)
            if op.name in CHECK_DW:
                CHECK_DW[op.name](kernel, problem, config)
        except KernelError as error:
            return str(error)
        return None
    known = dict.fromkeys(c for m in _between(1, MANY) for c in kernel.configs(replace(problem, m=m)))
    if config in known:
        return None
    return f"{config!r} is none of those it has here: {', '.join(filter(None, known)) or 'the default alone'}"


def _between(lowest: int, highest: int) -> Iterator[int]:
    """Numbers of rows from one end to the other, doubling."""
    while lowest < highest:
        yield lowest
        lowest *= 2
    yield highest
