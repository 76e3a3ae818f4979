"""Training with a model's zeros held: masks, and what moves weights under them."""

from ajour.train.adamw import MaskedAdamW
from ajour.train.changes import MaskChange
from ajour.train.finish import finish
from ajour.train.gradients import clip_grad_norm_, mask_gradients_
from ajour.train.gradual import GradualPruning
from ajour.train.linear import MaskedLinear, mask_linears
from ajour.train.lottery import most_changed, rewind, snapshot
from ajour.train.mask import Mask
from ajour.train.masks import Masks
from ajour.train.regrow import Regrow
from ajour.train.sgd import MaskedSGD
from ajour.train.sr_ste import SrSte, sr_ste
from ajour.train.tuning import backward_with_dropout, gradient_dropout, mask_penalty, tune_masks

__all__ = [
    "Mask", "Masks", "MaskedAdamW", "MaskedSGD", "clip_grad_norm_", "mask_gradients_", "MaskedLinear", "mask_linears",
    "Regrow", "GradualPruning", "MaskChange", "SrSte", "sr_ste", "tune_masks", "mask_penalty", "backward_with_dropout",
    "gradient_dropout", "snapshot", "most_changed", "rewind", "finish",
]  # fmt: skip
