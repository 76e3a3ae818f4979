"""Conversion: swaps a model's layers as a plan says, all or nothing, and back."""

from ajour.conversion.converting import convert
from ajour.conversion.reverting import revert

__all__ = ["convert", "revert"]
