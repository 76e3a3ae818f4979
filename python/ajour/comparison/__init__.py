"""Comparison: a whole model as torch runs it, compiled, on the best dense kernels, and converted, side by side."""

from ajour.comparison.comparing import compare
from ajour.comparison.report import Comparison, Size

__all__ = ["Comparison", "Size", "compare"]
