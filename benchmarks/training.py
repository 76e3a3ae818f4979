"""The training suite: forward, dx and dW of block-sparse layers against the best dense, and the three together.

`python -m benchmarks.training [--json FILE]`. Weights are cold as in the ops suite; every answer is checked in the run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ajour.formats import BlockMatrix
from ajour.nn.selection import canonical_choice
from ajour.ops import BLOCK_LINEAR, BLOCK_SDDMM
from ajour.ops.block_gradients import sampled_table
from ajour.ops.block_linear.op import TRANSPOSED
from ajour.ops.prepare import prepare
from ajour.planning.correctness import Oracle
from ajour.planning.device import last_level_cache
from ajour.planning.measuring import copies, dense_sides
from ajour.planning.timing import COLD, COPIES_LIMIT, CudaTimer, Side, Timing, cpu_timer, measure
from ajour.terms.pattern import Block
from benchmarks import results
from benchmarks.limits import Limits, measured
from benchmarks.shapes import SHAPES, Case, pruned

Row = dict[str, Any]
ROWS = (128, 512)
GPU_SHAPES, GPU_ROWS = {"Llama-like down": (4096, 16384)}, (512, 8192)
SECONDS = 0.5


def cases(device: torch.device) -> list[Case]:
    """Blocks at the targets' density, in rows that are balanced by chance and in skewed ones."""
    if device.type == "cuda":
        sides = (16, 32, 64, 128)
        made = [Case(Block(side, side), density, "random", GPU_ROWS) for side in sides for density in (0.1, 0.5)]
        return [*made, Case(Block(64, 64), 0.1, "skewed", GPU_ROWS)]
    made = [Case(Block(32, 32), density, "random", ROWS) for density in (0.1, 0.25)]
    return [*made, Case(Block(16, 16), 0.1, "random", ROWS), Case(Block(32, 32), 0.1, "skewed", ROWS)]


@dataclass(frozen=True)
class Layer:
    """A weight in both forms, in as many copies as make each cold."""

    case: Case
    matrix: BlockMatrix
    dense: list[Tensor]  # [n, k]
    turned: list[Tensor]  # [k, n], for the dense kernels that multiply by a transpose alone
    packed: list[list[Tensor]]
    table: str

    @classmethod
    def of(cls, case: Case, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Layer:
        """Random weights with the case's zeros."""
        w = pruned(shape, case, dtype).to(device)
        matrix = BlockMatrix.from_dense(w, case.pattern)
        packed, table = prepare(BLOCK_LINEAR, matrix, canonical_choice(BLOCK_LINEAR, matrix))
        cold = min(COLD * last_level_cache(device), COPIES_LIMIT // 2)
        many = max(1, -(-cold // (w.numel() * w.element_size())))
        dense = [held[0] for held in copies([w], many)]
        turned = [held[0] for held in copies([w.t().contiguous()], many)]
        return cls(case, matrix, dense, turned, copies(packed, max(1, -(-cold // max(1, matrix.nbytes)))), table)


def _dense_gradient(dy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    return (dy.t() @ x) * mask


def _onednn_gradient(dy: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    dw: Tensor = torch.ops.mkldnn._linear_pointwise(dy.t().contiguous(), x.t().contiguous(), None, "none", [], "")
    return dw * mask


def _sides(layer: Layer, x: Tensor, dy: Tensor) -> dict[str, tuple[list[Side], Side]]:
    """By op: the dense sides, what torch runs today first, and ours."""
    _, sampled = sampled_table(layer.table)
    index, mask = layer.packed[0][1:], (layer.dense[0] != 0).to(x.dtype)
    gradients: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"aten": _dense_gradient}
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        gradients["onednn"] = _onednn_gradient
    forward = [partial(BLOCK_LINEAR.call, x, packed, None, layer.table, "none") for packed in layer.packed]
    transposed = [partial(TRANSPOSED, dy, packed, layer.table) for packed in layer.packed]
    matmul = Side("matmul", [partial(torch.matmul, dy, w) for w in layer.dense])
    return {
        "block_linear": (dense_sides(x, layer.dense, None), Side("ours", forward)),
        "block_linear_t": ([matmul, *dense_sides(dy, layer.turned, None)], Side("ours", transposed)),
        "block_sddmm": (
            [Side(name, [partial(call, dy, x, mask)]) for name, call in gradients.items()],
            Side("ours", [partial(BLOCK_SDDMM.call, dy, x, index, sampled)]),
        ),
    }


def _error_ratios(layer: Layer, x: Tensor, dy: Tensor) -> dict[str, float]:
    """max|e| / bound by op; what is no live block of dW does not count."""
    w, packed = layer.dense[0], layer.packed[0]
    _, sampled = sampled_table(layer.table)
    blocks = BLOCK_SDDMM.call(dy, x, packed[1:], sampled)
    tensors = layer.matrix.tensors()
    dw = BlockMatrix({**tensors, "blocks": blocks}, layer.matrix.pattern, layer.matrix.shape).to_dense()
    live = BlockMatrix({**tensors, "blocks": torch.ones_like(blocks)}, layer.matrix.pattern, layer.matrix.shape)
    oracle = Oracle.of(dy.t().contiguous(), x.t().contiguous(), None)
    error = (dw[oracle.rows].double() - oracle.exact * live.to_dense()[oracle.rows].double()).abs().max()
    return {
        "block_linear": Oracle.of(x, w, None).error_ratio(BLOCK_LINEAR.call(x, packed, None, layer.table, "none")),
        "block_linear_t": Oracle.of(dy, w.t().contiguous(), None).error_ratio(TRANSPOSED(dy, packed, layer.table)),
        "block_sddmm": float(error) / oracle.bound,
    }


def cell(layer: Layer, m: int, limits: Limits, seconds: float = SECONDS) -> list[Row]:
    """A row for each op at m rows of x, and one for the three together."""
    (n, k), dtype = layer.matrix.shape, layer.matrix.dtype
    x, dy = (torch.randn(m, side, device=layer.matrix.device).to(dtype) for side in (k, n))
    timer = CudaTimer(graph=False) if x.device.type == "cuda" else cpu_timer
    wrong = _error_ratios(layer, x, dy)
    base = {
        "pattern": str(layer.case.pattern), "density": layer.case.density, "mask": layer.case.mask,
        "kernel": layer.table.split(" | * ")[1].split()[0], "config": "", "m": m, "n": n, "k": k,
        "dtype": str(dtype)[6:], "mode": "eager", "threads": torch.get_num_threads(),
    }  # fmt: skip
    nbytes = layer.matrix.nbytes + m * (n + k) * x.element_size()
    limit = limits.us(nbytes, 2 * m * layer.matrix.values.numel())
    rows: list[Row] = []
    for op, (dense, ours) in _sides(layer, x, dy).items():
        *others, mine = measure([*dense, ours], timer, seconds=seconds, give_up=False)
        best = min(range(len(dense)), key=lambda i: others[i].median)
        rows.append(
            _row({"op": op, **base}, others[0], others[best], dense[best].name, mine)
            | {"bytes": nbytes, "limit_us": round(limit, 3), "limit_fraction": round(limit / mine.median, 3)}
            | {"error_ratio": round(wrong[op], 3)}
        )
    total = {
        name: sum(row[name] for row in rows) for name in ("dense_us", "today_us", "sparse_us", "bytes", "limit_us")
    }
    together = {"op": "training step", **base, **total, "dense_kernel": "the best of each"}
    together |= {"speedup": round(total["dense_us"] / total["sparse_us"], 3), "error_ratio": max(wrong.values())}
    together |= {"spread": max(row["spread"] for row in rows), "limit_fraction": total["limit_us"] / total["sparse_us"]}
    return [*rows, together]


def _row(base: Row, today: Timing, dense: Timing, name: str, mine: Timing) -> Row:
    times = {"today_us": today.median, "dense_us": dense.median, "sparse_us": mine.median}
    return {
        **base, **{key: round(us, 3) for key, us in times.items()}, "dense_kernel": name,
        "spread": round(max(mine.spread, dense.spread), 3), "speedup": round(dense.median / mine.median, 3),
    }  # fmt: skip


def run(
    shapes: dict[str, tuple[int, int]], dtypes: Sequence[torch.dtype], device: torch.device, only: str = ""
) -> Iterator[tuple[str, list[Row]]]:
    """For each cell what it was and its rows."""
    for dtype in dtypes:
        timer = CudaTimer(graph=False) if device.type == "cuda" else cpu_timer
        limits = measured(dtype, device, timer)
        for name, shape in shapes.items():
            for case in cases(device):
                if only not in f"{name} {case}":
                    continue
                layer = Layer.of(case, shape, dtype, device)
                for m in case.rows:
                    yield f"{name} {case} at {m} rows", cell(layer, m, limits)


def main() -> None:
    """Prints each row, and writes them all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--only", default="", help="cells whose shape and case hold this text")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device, rows = torch.device(asked.device), []
    shapes = GPU_SHAPES if device.type == "cuda" else SHAPES
    for name, found in run(shapes, [getattr(torch, each) for each in asked.dtypes.split(",")], device, asked.only):
        rows += found
        for row in found:
            times = f"{row['dense_us']:.0f} -> {row['sparse_us']:.0f} us, {row['speedup']:.2f}x"
            print(f"{name} {row['dtype']} {row['op']}: {times}, torch today {row['today_us']:.0f} us", flush=True)  # noqa: T201
        if asked.json:
            results.write(asked.json, device, rows)


if __name__ == "__main__":
    main()
