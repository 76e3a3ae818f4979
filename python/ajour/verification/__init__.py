"""Verification: a converted model against its dense reference."""

from ajour.verification.checks import verify
from ajour.verification.report import LayerReport, Report

__all__ = ["LayerReport", "Report", "verify"]
