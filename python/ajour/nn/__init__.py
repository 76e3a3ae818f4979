"""Modules: hold a format, name kernels, call an op."""

from ajour.nn.bitmap import BitmapLinear
from ajour.nn.block import BlockLinear
from ajour.nn.dense import DenseLinear
from ajour.nn.linear import SparseLinear
from ajour.nn.modules import linear_of
from ajour.nn.nm import NMLinear
from ajour.nn.permuted import Permuted
from ajour.nn.scaled_nm import ScaledNMLinear
from ajour.nn.split import SplitLinear

__all__ = [
    "BitmapLinear",
    "BlockLinear",
    "DenseLinear",
    "NMLinear",
    "Permuted",
    "ScaledNMLinear",
    "SparseLinear",
    "SplitLinear",
    "linear_of",
]
