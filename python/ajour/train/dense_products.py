"""A masked layer's three products on whole matrices, by torch's own kernels or by oneDNN's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ajour.ops import DENSE_LINEAR
from ajour.terms.pattern import Dense
from ajour.terms.problem import Problem
from ajour.train.mask import Mask


def why_not_onednn(w: Tensor) -> str | None:
    """None if oneDNN takes a layer of this weight [n, k], else the reason in one sentence."""
    dtype = str(w.dtype).removeprefix("torch.")
    problem = Problem(DENSE_LINEAR.name, Dense(), 1, w.shape[0], w.shape[1], dtype, w.device.type)
    return DENSE_LINEAR.kernel("onednn").why_not(problem)


def linear_under_mask(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask, onednn: bool) -> Tensor:
    """y: [..., n] = x: [..., k] @ weight.T + bias; its gradient for the weight is +0.0 outside the mask."""
    y: Tensor = _Masked.apply(x, weight, bias, mask, onednn)  # type: ignore[no-untyped-call]
    return y


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Mask, onednn: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mask, ctx.onednn, ctx.bias_dtype = mask, onednn, None if bias is None else bias.dtype
        if onednn and torch.is_autocast_enabled(x.device.type):  # which torch's own linear looks after by itself
            to = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(to), weight.to(to), None if bias is None else bias.to(to)
        return _product(x, weight, bias, onednn)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dw = None
        if needs_x:  # autocast may have rounded y
            dx = _product(dy, weight.to(dy.dtype).t(), None, ctx.onednn).to(x.dtype)
        if needs_weight:
            columns = x.reshape(-1, x.shape[-1]).to(dy.dtype)
            dw = _product(rows.t(), columns.t(), None, ctx.onednn).to(weight.dtype)
            ctx.mask.apply_(dw)
        return dx, dw, rows.sum(0).to(ctx.bias_dtype) if needs_bias else None, None, None


def _product(a: Tensor, b: Tensor, bias: Tensor | None, onednn: bool) -> Tensor:
    """a: [..., k] @ b: [n, k].T + bias. oneDNN takes no empty matrices, and knows no derivatives of its own, which are
    wanted where gradients are enabled in a backward.
    """
    if not onednn or torch.is_grad_enabled() or not (a.numel() and b.numel()) or a.dtype is not b.dtype:
        return functional.linear(a, b, bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(_plain(a), _plain(b), bias, "none", [], "")
    return y


def _plain(t: Tensor) -> Tensor:
    """t or a copy: contiguous, or a contiguous matrix turned around, which oneDNN reads as it is."""
    return t if t.dim() == 2 and t.t().is_contiguous() else t.contiguous()
