"""Other people's errors become one sentence with a place; what is not theirs passes through."""

from __future__ import annotations

import pytest

from ajour.integrations.foreign import Foreign, one_line
from ajour.terms.errors import FileError, UnknownModelError


class OddError(Exception):
    pass


def told(said: str) -> UnknownModelError:
    return UnknownModelError(f"mine raised {said}")


@pytest.mark.parametrize("error", [OddError("one\ntwo"), SystemExit(7), ZeroDivisionError("one"), OddError()])
def test_anything_becomes_one_sentence_with_its_cause(error: BaseException) -> None:
    with (
        pytest.raises(UnknownModelError, match=r"^mine raised .* \(.*test_foreign.py, line \d+\)$") as seen,
        Foreign(told),
    ):
        raise error
    assert seen.value.__cause__ is error
    assert "two" not in str(seen.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ModuleNotFoundError("x"), FileError("damaged")])
def test_what_is_not_theirs_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as seen, Foreign(told):
        raise error
    assert seen.value is error


def test_an_error_without_a_message_is_its_class() -> None:
    assert one_line(OddError()) == "OddError"
    assert one_line(OddError("x" * 1000)) == "OddError: " + "x" * 300
