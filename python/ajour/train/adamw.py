"""MaskedAdamW: AdamW that holds zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ajour.ops.masked_update.op import MASKED_ADAMW
from ajour.train.mask import Mask
from ajour.train.optimizer import MaskedOptimizer
from ajour.train.settings import refuse_settings


class MaskedAdamW(MaskedOptimizer):
    """torch.optim.AdamW with masked-out weights at exactly +0.0; see MaskedOptimizer for what is not torch's.

    Moments are float32 whatever the weights are. lr may be a tensor; with capturable=True it and the steps are on the
    GPU, so that a step can be captured in a CUDA graph (after one step outside of it, and with gradients that stay in
    place). foreach and differentiable are refused: there is one fused pass.
    """

    op, widest = MASKED_ADAMW, "amsgrad"

    def __init__(
        self,
        params: Any,
        masks: Mapping[str, Mask] | None = None,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        storage: str = "dense",
        master: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        kernel: str | None = None,
    ) -> None:
        refuse_settings(
            "MaskedAdamW", foreach, differentiable, fused, lr=lr, eps=eps, weight_decay=weight_decay, beta1=betas[0],
            beta2=betas[1],
        )  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "capturable": capturable,
        }  # fmt: skip
        super().__init__(
            params, masks, defaults, storage=storage, master=master, stochastic_rounding=stochastic_rounding, seed=seed,
            kernel=kernel,
        )  # fmt: skip

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "amsgrad" if group["amsgrad"] else "adamw"

    def _columns(self, group: Mapping[str, Any], step: Any) -> tuple[float | Tensor, ...]:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        return (
            -1.0 if group["maximize"] else 1.0, 1 - lr * group["weight_decay"], 1 - beta1, beta2, 1 - beta2,
            correction2**-0.5, group["eps"], lr / correction1, step,
        )  # fmt: skip
