"""MaskedLinear: a linear layer whose weight has a mask, and whose weight gradient is zero where the mask is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ajour.planning.timing import CudaTimer, Side, cpu_timer, differ, measure
from ajour.terms.errors import PatternError
from ajour.terms.pattern import Block, Pattern
from ajour.train.block_products import BlockProducts
from ajour.train.mask import Mask
from ajour.train.masks import check_shape
from ajour.train.units import ENTRIES, live_units

DENSE, BLOCKS = "dense", "blocks"


def masked_weight_gradient(dy: Tensor, x: Tensor, mask: Mask) -> Tensor:
    """dw: [n, k] = dy: [m, n] transposed @ x: [m, k] where the mask keeps the weight, else +0.0."""
    dw = dy.t() @ x
    mask.apply_(dw)
    return dw


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
            masked_weight_gradient(rows, x.reshape(-1, x.shape[-1]).to(dy.dtype), ctx.layer.mask).to(weight.dtype)
            if needs_weight
            else None
        )
        return dx, dw, rows.sum(0).to(ctx.bias_dtype) if needs_bias else None, None


class MaskedLinear(nn.Linear):
    """y: [..., n] = x: [..., k] @ weight.T + bias, with dw exactly +0.0 outside the mask, NaN and Inf or not.

    It shares weight and bias with the layer that it is made of, so an optimizer goes on; the weight becomes +0.0
    outside the mask. SGD without decay and momentum then keeps it there, MaskedAdamW and MaskedSGD whatever they do.

    products: "blocks" computes y, dx and dw through the live blocks alone, as a converted layer does, with the cost of
    taking them out of the weight and putting dw back; "dense" computes dense products, and clears dw outside the mask.
    None takes "blocks" where the pattern is Block(rows, cols), which needn't be faster: `mask_linears(..., rows=)`
    measures both. Forward and backward of 1024 rows of x, 3072 x 768 float32 in blocks of 32 x 32, on one thread of an
    AMD EPYC (Zen 5): 135 ms dense, 12.5 at density 0.1, 33 at 0.3, 39 at 0.5; of 32 rows 5.9, 1.6, 2.6 and 6.6.
    Not measured on a GPU.

    `train.finish(model)` turns it back into the nn.Linear that plan and convert know.

    mask: a Mask, a bool tensor [n, k], or None for the non-zeros of the weight; its bits are part of the state_dict,
    and a state whose weight is not zero outside its mask is refused. Raises PatternError if it doesn't fit the weight,
    or cuts through the blocks of the pattern.
    """

    bits: Tensor

    def __init__(
        self, linear: nn.Linear, mask: Mask | Tensor | None = None, pattern: Pattern = ENTRIES,
        products: str | None = None,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        if type(linear).forward is not nn.Linear.forward:
            raise PatternError(
                f"MaskedLinear stands for an nn.Linear; {type(linear).__name__} has a forward of its own"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if not isinstance(mask, Mask):
            mask = Mask.from_dense(linear.weight.detach() != 0 if mask is None else mask)
        self.weight, self.bias, self.pattern = linear.weight, linear.bias, pattern
        self.products = products or (BLOCKS if isinstance(pattern, Block) else DENSE)
        if self.products not in (DENSE, BLOCKS) or (self.products == BLOCKS and not isinstance(pattern, Block)):
            raise PatternError(
                f"products={products!r} with {pattern}: expected {DENSE!r}, or {BLOCKS!r} with Block(...)"
            )
        self._blocks: BlockProducts | None = None
        self.register_buffer("bits", mask.bits)
        self.set_mask(mask)

    def set_mask(self, mask: Mask) -> None:
        """Another mask, after a schedule changed it; the weight becomes +0.0 outside. PatternError if unfit."""
        check_shape("weight", mask, self.weight)
        live_units(mask.dense(), self.pattern, "weight")
        self.bits = mask.bits.to(self.weight.device)
        mask.apply_(self.weight.detach())

    @property
    def mask(self) -> Mask:
        """The mask of the weight."""
        return Mask(self.bits, self.weight.shape)

    def forward(self, input: Tensor) -> Tensor:
        """x @ weight.T + bias."""
        if self.products == BLOCKS:
            return self._block_products().linear(input, self.weight, self.bias)
        y: Tensor = _Masked.apply(input, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return y

    def _block_products(self) -> BlockProducts:
        """For the weight's dtype and device and these very bits, which a file may have been read into."""
        made, w = self._blocks, self.weight
        if made is None or not made.serves(w, self.bits):
            assert isinstance(self.pattern, Block)
            live = live_units(self.mask.dense(), self.pattern, "weight")
            made = self._blocks = BlockProducts(live, self.pattern, w, self.bits)
        return made

    def to_linear(self) -> nn.Linear:
        """The nn.Linear with the same parameters."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, pattern and density."""
        return f"{super().extra_repr()}, {self.pattern}, density={self.mask.density:.3f}, products={self.products}"

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


def mask_linears(
    model: nn.Module, masks: Mapping[str, Mask], pattern: Pattern = ENTRIES, rows: int | None = None
) -> nn.Module:
    """Puts a MaskedLinear in the place of each nn.Linear whose weight has a mask, and returns the model.

    rows: how many rows of x a training step brings. With it and pattern=Block(rows, cols) each layer's products are
    the faster ones, measured now on random rows (`layer.products` says which); measure again when masks change much.
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
        layer = MaskedLinear(getattr(model.get_submodule(parent), leaf), mask, pattern)
        if rows is not None and layer.products == BLOCKS:
            layer.products = faster_products(layer, rows)
        setattr(model.get_submodule(parent), leaf, layer)
    return model


def faster_products(layer: MaskedLinear, rows: int) -> str:
    """ "blocks" if a forward and backward of `rows` rows is measurably faster that way, else "dense"."""
    w = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    x = torch.randn(rows, layer.in_features, device=w.device).to(w.dtype).requires_grad_()
    dy = torch.randn(rows, layer.out_features, device=w.device).to(w.dtype)
    weight = w.clone().requires_grad_()
    wanted = [t for t in (x, weight, bias) if t is not None]

    def dense() -> object:
        return torch.autograd.grad(_Masked.apply(x, weight, bias, layer), wanted, dy)  # type: ignore[no-untyped-call]

    def blocks() -> object:
        return torch.autograd.grad(layer._block_products().linear(x, weight, bias), wanted, dy)

    timer = CudaTimer(graph=False) if w.device.type == "cuda" else cpu_timer
    with torch.enable_grad():
        first, second = measure([Side(DENSE, [dense]), Side(BLOCKS, [blocks])], timer)
    return BLOCKS if second.median < first.median and differ(first, second) else DENSE
