"""Sees every op call of a run: whose it was, and how far its output is from float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ajour.nn import SparseLinear
from ajour.ops.calls import count_calls
from ajour.ops.dense import apply_activation

SLOPE = 1.13  # the largest of any activation (gelu's), by which it can stretch an error
# kernels whose product is oneDNN's own, of a weight that is dense or was expanded to be
ON_ONEDNN = ("onednn", "cpu_unpack")
MULTIPLICATIONS = 3e8  # in float64 for one layer; beyond, rows are sampled


class Watch(count_calls):
    """Sees every op call, and whose it is by its tensors: a hook would switch the fast paths off that it looks for."""

    def __init__(self, layers: Mapping[str, SparseLinear]) -> None:
        super().__init__()
        self.by_layer: dict[str, list[str]] = {name: [] for name in layers}
        self.ratios: dict[str, float] = {}
        self._layers = layers
        self._owners = {
            id(t): name for name, module in layers.items() for t in (*module.buffers(), *module.parameters())
        }

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = self.kernels.copy()
        y = super().__torch_dispatch__(func, types, args, kwargs)
        served = [kernel for (_, kernel), count in (self.kernels - before).items() for _ in range(count)]
        owner = self._owners.get(id(args[1][0])) if served and len(args) > 1 else None
        if owner is not None:
            self.by_layer[owner] += served
            if owner not in self.ratios:
                self.ratios[owner] = _error_ratio(self._layers[owner], args[0], y, served[0])
        return y


def _error_ratio(module: SparseLinear, x: Tensor, y: Tensor, kernel: str) -> float:
    """max|e| / allowed, on rows spread evenly where all would take long; inf where dense is finite and y is not.

    Dense is torch's own linear, but where oneDNN multiplies, oneDNN's: its sums are other ones, and on inputs with
    outlier columns 1.9 to 2.2 times what is allowed beside torch's (MiniLM, Zen 5).
    """
    n, k = module.out_features, module.in_features
    count = max(16, int(MULTIPLICATIONS / max(1, n * k)))
    m = x.shape[:-1].numel()
    rows = torch.linspace(0, m - 1, min(m, count), dtype=torch.float64, device=x.device).long()
    some, answer = x.detach().reshape(m, k)[rows].to(module.dtype), y.detach().reshape(m, n)[rows]
    w, bias = module.matrix().to_dense(), module._parameters["bias"]
    wide = None if bias is None else bias.double()
    size = some.double().abs() @ w.double().abs().T + (0 if wide is None else wide.abs())
    plain = linear(some, w, bias)
    onednn = module.op.kernels.get("onednn") if kernel in ON_ONEDNN else None
    if onednn is not None and some.dtype != torch.float16:
        plain = onednn.run(some, [w], bias, None, "none", None)
    dense = apply_activation(plain, module.activation)
    exact = apply_activation(linear(some.double(), w.double(), wide), module.activation)
    finite = dense.isfinite()
    if not bool(answer.isfinite()[finite].all()):
        return float("inf")
    error, of_dense, size = (
        torch.where(finite, t.double(), 0.0).max() for t in ((answer - exact).abs(), (dense - exact).abs(), size)
    )
    allowed = float(2 * of_dense + SLOPE * 2.0**-23 * size)
    return float(error) / allowed if allowed else float(error) and float("inf")
