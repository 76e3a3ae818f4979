"""Training with a model's zeros held: masks, and what moves weights under them."""

from ajour.train.adamw import MaskedAdamW
from ajour.train.gradients import clip_grad_norm_, mask_gradients_
from ajour.train.mask import Mask
from ajour.train.masks import Masks
from ajour.train.sgd import MaskedSGD

__all__ = ["Mask", "MaskedAdamW", "MaskedSGD", "Masks", "clip_grad_norm_", "mask_gradients_"]
