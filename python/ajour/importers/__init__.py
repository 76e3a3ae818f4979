"""Importers: files of other tools' pruned models as dense weights with their zeros; nothing is ever unpickled."""

from ajour.importers.checkpoint import Checkpoint, open_checkpoint
from ajour.importers.weights import Weight, find_weights

__all__ = ["Checkpoint", "Weight", "find_weights", "open_checkpoint"]
