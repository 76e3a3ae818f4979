"""Training with a model's zeros held: masks, and what moves weights under them."""

from ajour.train.mask import Mask
from ajour.train.masks import Masks

__all__ = ["Mask", "Masks"]
