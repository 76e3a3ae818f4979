"""One family of errors; each message names the layer, what was expected, what was found and what to do."""

from __future__ import annotations


class AjourError(Exception):
    """Base of every error that ajour raises on purpose."""


class PatternError(AjourError, ValueError):
    """A weight does not fit the pattern that a format was asked to hold, or there is no such pattern."""


class FormatError(AjourError):
    """A stored sparse matrix is damaged: an index out of range, an illegal code, sizes that don't agree."""


class KernelError(AjourError):
    """A kernel was asked for a problem that it can't take, or does not exist."""


class PlanError(AjourError):
    """A plan is malformed, or was made for another model or another kind of device."""


class ConversionError(AjourError):
    """A model could not be converted; it is as it was."""


class FileError(AjourError):
    """A file is missing, damaged, of a future version, or belongs to another model."""


class UnknownModelError(FileError):
    """There is no model by that name: no such folder, file, module or callable."""


class VerificationError(AjourError):
    """A converted model does not do what its plan says."""


class MachineError(AjourError):
    """This machine lacks something: a package, a compiler, a driver."""
