"""MaskedLinear: a linear layer whose weight has a mask, and whose weight gradient is zero where the mask is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ajour.planning.timing import CudaTimer, Side, cpu_timer, differ, measure
from ajour.terms.errors import PatternError
from ajour.terms.pattern import Block, Pattern
from ajour.train.block_products import BlockProducts, version
from ajour.train.dense_products import linear_under_mask, why_not_onednn
from ajour.train.mask import Mask
from ajour.train.masks import check_shape
from ajour.train.readers import enlist
from ajour.train.units import ENTRIES, live_units

DENSE, ONEDNN, BLOCKS = "dense", "onednn", "blocks"


class MaskedLinear(nn.Linear):
    """y: [..., n] = x: [..., k] @ weight.T + bias, with dw exactly +0.0 outside the mask, NaN and Inf or not.

    It shares weight and bias with the layer that it is made of, so an optimizer goes on; the weight becomes +0.0
    outside the mask. SGD without decay and momentum then keeps it there, MaskedAdamW and MaskedSGD whatever they do.

    products: "blocks" computes y, dx and dw through the live blocks alone, as a converted layer does, with the cost of
    taking them out of the weight and putting dw back; "dense" computes dense products, and clears dw outside the mask;
    "onednn" does the same by oneDNN, which is faster where torch's own linear isn't by oneDNN (float32 on AMD). None
    takes "blocks" where the pattern is Block(rows, cols), else "dense", which needn't be the fastest:
    `mask_linears(..., rows=)` measures what the layer can run. Forward and backward of 1024 rows of x, 3072 x 768
    float32 in blocks of 32 x 32, on one thread of an AMD EPYC (Zen 5): 136 ms dense, 75 by oneDNN, 16 by blocks at
    density 0.1, 47 at 0.5; of 32 rows 6.4, 3.6, 2.0 and 6.4. Not measured on a GPU.

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
        can = self.possible_products()
        self.products = products or (BLOCKS if BLOCKS in can else DENSE)
        if self.products not in can:
            raise PatternError(
                f"products={products!r} with {pattern}: expected {' or '.join(map(repr, can))} for a weight of "
                f"{self.weight.dtype} on {self.weight.device}; {BLOCKS!r} needs Block(...)"
            )
        self._blocks: BlockProducts | None = None
        self._agreed: tuple[Mask, Tensor, int] | None = None
        self.register_buffer("bits", mask.bits)
        self.set_mask(mask)
        enlist(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, or out of a file."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        enlist(self)

    def set_mask(self, mask: Mask) -> None:
        """Another mask; the weight becomes +0.0 outside. PatternError if unfit.

        Not where a masked optimizer holds the weight: it brings its masks here whenever they change, and its next step
        refuses a layer that has another one.
        """
        check_shape("weight", mask, self.weight)
        live_units(mask.dense(), self.pattern, "weight")
        self.bits = mask.bits.to(self.weight.device, copy=True)
        mask.apply_(self.weight.detach())

    def follow(self, mask: Mask) -> None:
        """Has the mask under which an optimizer holds the weight, which is +0.0 outside of it already."""
        self.bits = mask.bits.to(self.weight.device, copy=True)  # its own, as DDP and files write into buffers
        self.agree(mask)

    def agree(self, mask: Mask) -> None:
        """Notes that the bits are this mask's."""
        self._agreed = mask, self.bits, version(self.bits)

    def follows(self, mask: Mask) -> bool:
        """Whether the bits were noted to be this mask's, and are untouched since."""
        noted, bits = self._agreed, self._buffers["bits"]
        return noted is not None and noted[0] is mask and noted[1] is bits and noted[2] == version(noted[1])

    @property
    def mask(self) -> Mask:
        """The mask of the weight."""
        return Mask(self.bits, self.weight.shape)

    def forward(self, input: Tensor) -> Tensor:
        """x @ weight.T + bias."""
        return self._run(self.products, input, self.weight, self.bias)

    def _run(self, products: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if products == BLOCKS:
            return self._block_products().linear(x, weight, bias)
        return linear_under_mask(x, weight, bias, self.mask, products == ONEDNN)

    def _block_products(self) -> BlockProducts:
        """For the weight's dtype and device and these very bits, which a file may have been read into."""
        made, w = self._blocks, self.weight
        if made is None or not made.serves(w, self.bits):
            assert isinstance(self.pattern, Block)
            live = live_units(self.mask.dense(), self.pattern, "weight")
            made = self._blocks = BlockProducts(live, self.pattern, w, self.bits)
        return made

    def possible_products(self) -> list[str]:
        """What `products` may be for this pattern, dtype and device, dense ways first."""
        dense = [DENSE, ONEDNN] if why_not_onednn(self.weight) is None else [DENSE]
        return [*dense, BLOCKS] if isinstance(self.pattern, Block) else dense

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

    rows: how many rows of x a training step brings. With it each layer's products are the fastest that it can run,
    measured now on random rows (`layer.products` says which); measure again when masks change much. Optimizers made
    before go on. Raises PatternError, before anything changes, for a mask that isn't an nn.Linear's
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
        if rows is not None:
            layer.products = fastest_products(layer, rows)
        setattr(model.get_submodule(parent), leaf, layer)
    return model


def fastest_products(layer: MaskedLinear, rows: int) -> str:
    """The fastest way of a forward and backward of `rows` rows; one that isn't plain dense must win measurably, blocks
    over the faster dense.
    """
    w = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    x = torch.randn(rows, layer.in_features, device=w.device).to(w.dtype).requires_grad_()
    dy = torch.randn(rows, layer.out_features, device=w.device).to(w.dtype)
    weight = w.clone().requires_grad_()
    wanted = [t for t in (x, weight, bias) if t is not None]

    def step(products: str) -> object:
        return torch.autograd.grad(layer._run(products, x, weight, bias), wanted, dy)

    timer = CudaTimer(graph=False) if w.device.type == "cuda" else cpu_timer
    ways = layer.possible_products()
    with torch.enable_grad():
        times = dict(zip(ways, measure([Side(way, [partial(step, way)]) for way in ways], timer), strict=True))
    best = DENSE
    for way in ways:
        if times[way].median < times[best].median and differ(times[way], times[best]):
            best = way
    return best
