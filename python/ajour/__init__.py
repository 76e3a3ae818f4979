"""ajour: pruned PyTorch models, run fast, exactly and honestly."""

from ajour import formats
from ajour.ops.functional import linear
from ajour.terms.errors import AjourError
from ajour.terms.pattern import NM, Block, Dense, Unstructured

__all__ = ["NM", "AjourError", "Block", "Dense", "Unstructured", "formats", "linear"]
