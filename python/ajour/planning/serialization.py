"""Records of frozen dataclasses as JSON, strictly: whatever does not fit is refused with its place."""

from __future__ import annotations

import dataclasses
import json
import typing
from types import UnionType
from typing import Any, TypeVar

from ajour.terms.errors import PatternError, PlanError
from ajour.terms.pattern import NM, Block, Dense, Unstructured, parse_pattern

_KIND = "ajour plan"
_PATTERNS = (Dense, NM, Block, Unstructured)
_LEAST = {"plan.margin": -1}  # below 0, what sparse may lose; 0 for every other number
SINCE = "since"  # metadata of a field: the version that brought it; an older text lacks it, and its default holds
T = TypeVar("T")


def write(record: Any, version: int) -> str:
    """A dataclass as indented JSON, its fields in their order, patterns as text; ends with a line break."""
    return json.dumps({"kind": _KIND, "version": version, **_plain(record)}, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, _PATTERNS):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def read(cls: type[T], text: str, version: int) -> T:
    """The inverse of `write`, of this or an older version; raises PlanError naming the place, what was expected there
    and what was found.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"this is no plan: {error}") from None
    if not isinstance(data, dict) or data.pop("kind", None) != _KIND:
        raise PlanError('this is no plan: expected an object with "kind": "ajour plan"')
    found = data.pop("version", None)
    if isinstance(found, int) and not isinstance(found, bool) and found > version:
        raise PlanError(
            f"this plan is of version {found}, this ajour reads up to {version}; update ajour or plan again"
        )
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise PlanError(f"version: expected 1 to {version}, found {found!r}")
    record: T = _dataclass(cls, data, "plan", found)
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that a plan can hold")


def _dataclass(cls: Any, data: Any, where: str, version: int) -> Any:
    if not isinstance(data, dict):
        raise PlanError(f"{where}: expected an object, found {data!r}")
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    names = [field.name for field in fields if field.name in data or field.metadata.get(SINCE, 1) <= version]
    for name in names:
        if name not in data:
            raise PlanError(f"{where}: {name} is missing")
    for name in data:
        if name not in names:
            raise PlanError(f"{where}: {name} is unknown")
    return cls(**{name: _value(hints[name], data[name], f"{where}.{name}", version) for name in names})


def _value(kind: Any, data: Any, where: str, version: int) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return _union(inner, data, where, version)
    if origin is tuple:
        if not isinstance(data, list):
            raise PlanError(f"{where}: expected a list, found {data!r}")
        if inner[-1] is ...:
            inner = (inner[0],) * len(data)
        if len(inner) != len(data):
            raise PlanError(f"{where}: expected {len(inner)} entries, found {len(data)}")
        return tuple(
            _value(item, entry, f"{where}[{i}]", version)
            for i, (item, entry) in enumerate(zip(inner, data, strict=True))
        )
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where, version)
    return _scalar(kind, data, where)


def _union(inner: tuple[Any, ...], data: Any, where: str, version: int) -> Any:
    if data is None and type(None) in inner:
        return None
    if any(pattern in inner for pattern in _PATTERNS):
        try:
            return parse_pattern(data)
        except PatternError as error:
            raise PlanError(f"{where}: {error}") from None
    (kind,) = (item for item in inner if item is not type(None))
    return _value(kind, data, where, version)


def _scalar(kind: type, data: Any, where: str) -> Any:
    """Every number of a plan is finite (JSON has no NaN), and none but the margin is negative."""
    if kind is bool:
        if not isinstance(data, bool):
            raise PlanError(f"{where}: expected true or false, found {data!r}")
        return data
    numbers = (int, float) if kind is float else (int,)
    fits = isinstance(data, str) if kind is str else isinstance(data, numbers) and not isinstance(data, bool)
    if not fits or (kind is not str and not _LEAST.get(where, 0) <= data < 2**63):
        wanted = {str: "text", int: "a whole number", float: "a number"}[kind]
        raise PlanError(f"{where}: expected {wanted}{'' if kind is str else ' that is not negative'}, found {data!r}")
    return float(data) if kind is float else data
