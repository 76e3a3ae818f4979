"""Counts the calls of ajour's ops that really happen: a converted layer can be bypassed without its output changing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ajour.ops import LINEAR_OPS
from ajour.terms.row_table import parse_row_table


class count_calls(TorchDispatchMode):  # noqa: N801, used like a function: `with count_calls() as calls:`
    """Counts while it is entered, in this thread; eager calls only.

    ops:     op name ("nm_linear") -> calls.
    kernels: (op name, kernel name) -> calls with at least one row that this kernel served.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: Counter[str] = Counter()
        self.kernels: Counter[tuple[str, str]] = Counter()
        self._names = {op.registered: name for name, op in LINEAR_OPS.items()}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = self._names.get(func)  # type: ignore[call-overload]
        if name is not None:
            self.ops[name] += 1
            x: Tensor = args[0] if args else kwargs["x"]
            table = parse_row_table(args[3] if len(args) > 3 else kwargs["kernels"])
            if rows := math.prod(x.shape[:-1]):
                self.kernels[name, table.at(rows).kernel] += 1
        return func(*args, **kwargs)
