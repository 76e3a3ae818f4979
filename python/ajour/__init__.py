"""ajour: pruned PyTorch models, run fast, exactly and honestly."""

from ajour import _requirements, formats, nn, train  # noqa: F401, the first one refuses what the environment lacks
from ajour.conversion import convert, revert
from ajour.importers import read
from ajour.inspection import inspect
from ajour.io import load, save
from ajour.ops.functional import linear
from ajour.planning.plan import Plan
from ajour.planning.planner import plan
from ajour.projection import project
from ajour.pruning import prune
from ajour.quantization import quantize
from ajour.roofline import limits
from ajour.terms import errors
from ajour.terms.errors import AjourError
from ajour.terms.pattern import NM, Block, Dense, Unstructured
from ajour.verification import verify

__all__ = [
    "inspect", "read", "project", "plan", "convert", "revert",
    "save", "load", "verify", "limits", "prune", "quantize", "linear",
    "Dense", "NM", "Block", "Unstructured", "Plan", "formats", "nn", "train", "AjourError", "errors",
]  # fmt: skip
