"""The doctor: what this machine has, and whether every kernel that takes it computes rightly."""

from ajour.diagnosis.diagnosing import diagnose
from ajour.diagnosis.findings import Diagnosis, Finding
from ajour.diagnosis.machine import version_line
from ajour.diagnosis.packages import import_failure

__all__ = ["Diagnosis", "Finding", "diagnose", "import_failure", "version_line"]
