"""Importers: other tools' pruned models, live or in files, as dense weights; nothing in a file ever runs."""

from ajour.importers.checkpoint import Checkpoint, open_checkpoint
from ajour.importers.reading import read
from ajour.importers.weights import Weight, find_weights

__all__ = ["Checkpoint", "Weight", "find_weights", "open_checkpoint", "read"]
