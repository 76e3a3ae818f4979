"""Projection: what it would cost to make weights fit a pattern that they nearly fit, and doing it when asked."""

from ajour.projection.projecting import project
from ajour.projection.report import LayerProjection, Projection

__all__ = ["LayerProjection", "Projection", "project"]
