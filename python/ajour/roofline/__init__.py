"""The roofline: how fast a layer could be at best on a device, whatever kernel runs it, and what zeros could gain."""

from ajour.roofline.limiting import limits
from ajour.roofline.report import LayerLimits, LimitsReport, SizeLimits

__all__ = ["LayerLimits", "LimitsReport", "SizeLimits", "limits"]
