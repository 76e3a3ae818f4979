"""Files: a converted model saved as one safetensors file and loaded into its skeleton."""

from ajour.io.reading import load
from ajour.io.writing import save

__all__ = ["load", "save"]
