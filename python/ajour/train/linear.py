"""MaskedLinear: a linear layer whose weight has a mask, and whose weight gradient is zero where the mask is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import pad

from ajour.terms.errors import PatternError
from ajour.terms.pattern import Block, Pattern
from ajour.train.mask import Mask
from ajour.train.masks import check_shape
from ajour.train.units import ENTRIES, live_units


def block_weight_gradient(dy: Tensor, x: Tensor, live: Tensor, pattern: Block) -> Tensor:
    """dw: [n, k] = dy: [m, n] transposed @ x: [m, k] in the blocks where live: [n / rows, k / cols] is True, else +0.0.

    One product for each block row, with the gathered columns of x.
    """
    n, k, m = dy.shape[1], x.shape[1], dy.shape[0]
    r, c, (height, width) = pattern.rows, pattern.cols, live.shape
    across = pad(dy.t(), (0, 0, 0, -n % r)).contiguous().view(height, r, m)
    along = pad(x.t(), (0, 0, 0, -k % c)).contiguous().view(width, c, m)
    dw = dy.new_zeros(height, r, width, c)
    for row, columns in enumerate(live.nonzero()[:, 1].split(live.sum(1).tolist())):
        if columns.numel():
            dw[row, :, columns] = (across[row] @ along[columns].flatten(0, 1).t()).view(r, -1, c)
    return dw.view(height * r, width * c)[:n, :k]


def masked_weight_gradient(dy: Tensor, x: Tensor, keep: Tensor) -> Tensor:
    """The same at single entries, where keep: [n, k] is True; the dense product, and what the mask drops is +0.0."""
    return torch.where(keep, dy.t() @ x, 0.0)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: MaskedLinear
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.bias_dtype = layer, None if bias is None else bias.dtype
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        dx = (dy @ weight.to(dy.dtype)).to(x.dtype) if needs_x else None  # autocast may have rounded y
        dw = (
            ctx.layer.gradient(rows, x.reshape(-1, x.shape[-1]).to(dy.dtype)).to(weight.dtype) if needs_weight else None
        )
        return dx, dw, rows.sum(0).to(ctx.bias_dtype) if needs_bias else None, None


class MaskedLinear(nn.Linear):
    """y: [..., n] = x: [..., k] @ weight.T + bias, with dw exactly +0.0 outside the mask, NaN and Inf or not.

    It shares weight and bias with the layer that it is made of, so an optimizer goes on; the weight becomes +0.0
    outside the mask. SGD without decay and momentum then keeps it there, MaskedAdamW and MaskedSGD whatever they do.

    What gets cheaper: with pattern=Block(rows, cols) the weight gradient is computed in live blocks only. What does
    not: the forward and dx (dense products with a weight that holds zeros), and dw for single entries (a dense product
    that is masked). On two threads of an AMD EPYC (Zen 5), 1024 rows of x, 3072 x 768 float32 in blocks of 32 x 32, dw
    takes 22.9 ms dense, 10.4 at density 0.1, 14.6 at 0.2 and 26.5 at 0.5, where it no longer pays; forward and backward
    together 71.0, 63.4, 62.9 and 74.1 ms. Not measured on a GPU.

    `train.finish(model)` turns it back into the nn.Linear that plan and convert know.

    mask: a Mask, a bool tensor [n, k], or None for the non-zeros of the weight; its bits are part of the state_dict,
    and a state whose weight is not zero outside its mask is refused. Raises PatternError if it doesn't fit the weight,
    or cuts through the blocks of the pattern.
    """

    bits: Tensor
    live: Tensor

    def __init__(self, linear: nn.Linear, mask: Mask | Tensor | None = None, pattern: Pattern = ENTRIES) -> None:
        nn.Module.__init__(self)
        if type(linear).forward is not nn.Linear.forward:
            raise PatternError(
                f"MaskedLinear stands for an nn.Linear; {type(linear).__name__} has a forward of its own"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if not isinstance(mask, Mask):
            mask = Mask.from_dense(linear.weight.detach() != 0 if mask is None else mask)
        self.weight, self.bias, self.pattern = linear.weight, linear.bias, pattern
        self.register_buffer("bits", mask.bits)
        self.register_buffer("live", torch.empty(0), persistent=False)
        self.set_mask(mask)

    def set_mask(self, mask: Mask) -> None:
        """Another mask, after a schedule changed it; the weight becomes +0.0 outside. PatternError if unfit."""
        check_shape("weight", mask, self.weight)
        self.live = live_units(mask.dense(), self.pattern, "weight").to(self.weight.device)
        self.bits = mask.bits.to(self.weight.device)
        mask.apply_(self.weight)

    @property
    def mask(self) -> Mask:
        """The mask of the weight."""
        return Mask(self.bits, self.weight.shape)

    def forward(self, input: Tensor) -> Tensor:
        """x @ weight.T + bias."""
        y: Tensor = _Masked.apply(input, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return y

    def gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """dw: [n, k] of dy: [m, n] and x: [m, k], +0.0 outside the mask."""
        if isinstance(self.pattern, Block):
            return block_weight_gradient(dy, x, self.live, self.pattern)
        return masked_weight_gradient(dy, x, self.mask.dense())

    def to_linear(self) -> nn.Linear:
        """The nn.Linear with the same parameters."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, pattern and density."""
        return f"{super().extra_repr()}, {self.pattern}, density={self.mask.density:.3f}"

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        given = {name: state_dict.get(prefix + name, getattr(self, name)) for name in ("weight", "bits")}
        mask = self.mask
        if given["weight"].shape == self.weight.shape:
            try:
                mask = Mask(given["bits"], self.weight.shape)
                live_units(mask.dense(), self.pattern, prefix + "weight")
            except PatternError as error:
                error_msgs.append(str(error))
                return
            if bool((given["weight"][~mask.dense().to(given["weight"].device)] != 0).any()):
                error_msgs.append(f"{prefix}weight is not zero outside the mask that comes with it ({prefix}bits)")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.set_mask(mask)  # and -0.0 becomes +0.0


def mask_linears(model: nn.Module, masks: Mapping[str, Mask], pattern: Pattern = ENTRIES) -> nn.Module:
    """Puts a MaskedLinear in the place of each nn.Linear whose weight has a mask, and returns the model.

    Optimizers made before go on. Raises PatternError, before anything changes, for a mask that isn't an nn.Linear's
    weight or doesn't fit.
    """
    modules = dict(model.named_modules())
    for name in masks:
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or not path or type(modules.get(path)) is not nn.Linear:
            raise PatternError(f"{name!r} is not the weight of an nn.Linear inside this model; leave its mask out")
        check_shape(name, masks[name], modules[path].weight)
        live_units(masks[name].dense(), pattern, name)
    for name, mask in masks.items():
        parent, _, leaf = name.rpartition(".")[0].rpartition(".")
        setattr(
            model.get_submodule(parent), leaf, MaskedLinear(getattr(model.get_submodule(parent), leaf), mask, pattern)
        )
    return model
