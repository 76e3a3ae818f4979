"""Formats: how what is left of a pruned weight is stored."""

from ajour.formats.bitmap import BitmapMatrix
from ajour.formats.block import BlockMatrix
from ajour.formats.dense import DenseMatrix
from ajour.formats.matrix import SparseMatrix
from ajour.formats.nm import NMMatrix
from ajour.formats.scaled_nm import ScaledNMMatrix
from ajour.formats.split import SplitMatrix

__all__ = ["BitmapMatrix", "BlockMatrix", "DenseMatrix", "NMMatrix", "ScaledNMMatrix", "SparseMatrix", "SplitMatrix"]
