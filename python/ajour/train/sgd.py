"""MaskedSGD: stochastic gradient descent that holds zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ajour.ops.masked_update.op import MASKED_SGD
from ajour.terms.errors import KernelError
from ajour.train.mask import Mask
from ajour.train.optimizer import MaskedOptimizer
from ajour.train.settings import refuse_settings


class MaskedSGD(MaskedOptimizer):
    """torch.optim.SGD with masked-out weights at exactly +0.0; see MaskedOptimizer for what is not torch's.

    The momentum is float32 whatever the weights are. As in torch, it begins with the step that first has one, whose
    gradient isn't dampened. foreach and differentiable are refused: there is one fused pass.
    """

    op, widest = MASKED_SGD, "momentum"

    def __init__(
        self,
        params: Any,
        masks: Mapping[str, Mask] | None = None,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
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
            "MaskedSGD", foreach, differentiable, fused, lr=lr, momentum=momentum, weight_decay=weight_decay
        )
        if nesterov and (momentum <= 0 or dampening != 0):
            raise KernelError("MaskedSGD: nesterov needs a momentum and no dampening")
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
            "maximize": maximize, "capturable": capturable,
        }  # fmt: skip
        super().__init__(
            params, masks, defaults, storage=storage, master=master, stochastic_rounding=stochastic_rounding, seed=seed,
            kernel=kernel,
        )  # fmt: skip

    def _rule(self, group: Mapping[str, Any]) -> str:
        return "momentum" if group["momentum"] else "sgd"

    def _columns(self, group: Mapping[str, Any], step: Any) -> tuple[float | Tensor, ...]:
        gain = 1.0 - group["dampening"] * (step != 1)  # the first gradient counts in full
        return (
            -1.0 if group["maximize"] else 1.0, group["weight_decay"], group["momentum"], gain,
            float(group["nesterov"]), 0.0, 0.0, group["lr"], step,
        )  # fmt: skip
