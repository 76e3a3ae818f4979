"""The packages that ajour can use and does without: there, absent, or there and broken."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator

from ajour.diagnosis.findings import Finding

UNIMPORTABLE = (ImportError, OSError, RuntimeError, AttributeError, ValueError)  # what a broken package may raise


def optional_packages() -> Iterator[Finding]:
    """Those that ajour runs without, with what they would be good for."""
    yield _package("Triton", "triton", "for its kernels on a GPU: pip install 'triton>=3.6'")
    yield _package("transformers", "transformers", "for Hugging Face folders and the demo: pip install transformers")
    yield _package("matplotlib", "matplotlib.figure", "for pages with charts (--html): pip install matplotlib")


def _package(subject: str, module: str, remedy: str) -> Finding:
    package = module.split(".")[0]
    if importlib.util.find_spec(package) is None:
        return Finding(subject, "absent", "not installed", remedy)
    if failure := import_failure(module):
        return Finding(subject, "broken", f"broken: {failure}", f"pip install --force-reinstall {package}")
    return Finding(subject, "ok", importlib.metadata.version(package))


def import_failure(module: str) -> str | None:
    """What importing an installed package raises, in one line; None where it can be used."""
    try:
        importlib.import_module(module)
    except UNIMPORTABLE as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """Of its message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
