"""What the tests of every GPU kernel ask of a product: the error rule, the same bits each time, graphs, devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ajour.formats import SparseMatrix
from ajour.ops.functional import op_of
from ajour.ops.library import LinearOp
from ajour.ops.prepare import Choice, prepare
from ajour.terms.pattern import Pattern
from pruned import bits, keep_mask, stored_places, truth


def drawn(pattern: Pattern, n: int, k: int, dtype: torch.dtype, density: float = 0.4, skew: bool = False) -> Tensor:
    """A random weight with the pattern's zeros."""
    return torch.where(keep_mask(pattern, n, k, density, skew), torch.randn(n, k), 0.0).to(dtype)


def there(*tensors: Tensor | None) -> list[Tensor | None]:
    """Each on the GPU."""
    return [None if t is None else t.cuda() for t in tensors]


def twice(
    op: LinearOp,
    x: Tensor,
    packed: list[Tensor],
    table: str,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """y on the CPU of operands on the CPU; two runs give the same bits."""
    given = there(x, bias, residual)
    first, again = (op.call(given[0], packed, given[1], table, activation, given[2]) for _ in range(2))
    assert torch.equal(bits(first), bits(again)), f"{table}: two runs differ"
    return first.cpu()


def assert_only_stored_columns_spread(y: Tensor, x: Tensor, matrix: SparseMatrix) -> None:
    """Inf and NaN of x are in those outputs that store their column, and nowhere else; all on the CPU."""
    w = matrix.to_dense().double()
    expected = torch.where(stored_places(matrix), x.double()[:, None] * w, 0.0).sum(-1)
    assert torch.equal(y.isnan(), expected.isnan())
    infinite = expected.isinf()
    assert torch.equal(y.isinf(), infinite)
    assert torch.equal(y[infinite].double(), expected[infinite])


def replayed_at_once(op: LinearOp, xs: list[Tensor], packed: list[Tensor], table: str) -> None:
    """Two graphs of eight calls each, twenty times on two streams: no call may share its scratch with another."""
    eager = [op.call(x, packed, None, table, "none") for x in xs]
    graphs, outputs, streams = [], [], [torch.cuda.Stream(), torch.cuda.Stream()]
    for x in xs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs.append([op.call(x, packed, None, table, "none") for _ in range(8)])
        graphs.append(graph)
    for _ in range(20):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for expected, found in zip(eager, outputs, strict=True):
            assert all(torch.equal(bits(y), bits(expected)) for y in found)


def on_every_device(matrix: SparseMatrix, x: Tensor, choices: Sequence[Choice]) -> None:
    """On each GPU and a stream of its own the product is right, and the current device stays what it was."""
    op, expected = op_of(matrix), truth(x, matrix.to_dense(), None, None, "none")
    for device in range(torch.cuda.device_count()):
        packed, table = prepare(op, matrix.to(f"cuda:{device}"), choices)
        with torch.cuda.stream(torch.cuda.Stream(device)):
            y = op.call(x.to(f"cuda:{device}"), packed, None, table, "none")
        torch.cuda.synchronize(device)
        assert torch.cuda.current_device() == 0, "a call changed the current device"
        expected.check(y.cpu(), f"cuda:{device}")
