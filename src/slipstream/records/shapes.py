"""JSON read into frozen dataclasses by their annotations: a missing or damaged value is named by its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from slipstream.errors import InputError

T = TypeVar("T")

NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def read_shape(shape: type[T], value: Any, place: str) -> T:
    """A dataclass filled from a JSON object, its fields by name; keys that it does not have are left alone.

    Fields with a default may be missing. place: where the object stands, for messages. Raises InputError for a missing
    key, a value of another type, or a number that is not finite.
    """
    _expect(isinstance(value, Mapping), value, place, "an object")
    found = {}
    kinds = _kinds(shape)  # type: ignore[arg-type]  # mypy cannot see that classes are hashable
    for name, (kind, optional) in kinds.items():
        if name not in value and optional:
            continue
        if name not in value:
            raise InputError(f"{place} has no {name!r}: the record is damaged or of another format")
        found[name] = _value(kind, value[name], f"{place}.{name}")
    return shape(**found)


def _value(kind: Any, value: Any, place: str) -> Any:
    """A value of an annotated kind: a class, `X | None`, `list[X]`, `dict[str, X]`, `Any` or a dataclass."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return _one_of(inner, value, place)
    if origin is list:
        _expect(isinstance(value, list), value, place, "a list")
        return [_value(inner[0], one, f"{place}[{index}]") for index, one in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, Mapping), value, place, "an object")
        return {str(key): _value(inner[1], one, f"{place}.{key}") for key, one in value.items()}
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return read_shape(kind, value, place)
    return value if kind is Any else _plain(kind, value, place)


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    """A value of `X | None`, or of one of several classes."""
    kinds, nullable = tuple(kind for kind in kinds if kind is not NoneType), NoneType in kinds
    if value is None and nullable:
        return None
    if len(kinds) == 1:
        return _value(kinds[0], value, place)
    _expect(isinstance(value, kinds), value, place, " or ".join(NAMES[kind] for kind in kinds))
    return value


def _plain(kind: Any, value: Any, place: str) -> Any:
    """A number, a text or a truth value. A whole number will do where a number is wanted, `true` for neither."""
    accepted = (int, float) if kind is float else kind
    _expect(isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)), value, place, NAMES[kind])
    if kind is float:
        _expect(math.isfinite(value), value, place, "a finite number")
        return float(value)
    return value


def _expect(holds: bool, value: Any, place: str, wanted: str) -> None:
    if not holds:
        shown = repr(value)
        raise InputError(f"{place} is {shown if len(shown) < 60 else type(value).__name__}; it must be {wanted}")


@cache
def _kinds(shape: Any) -> dict[str, tuple[Any, bool]]:
    """The annotation of every field that a dataclass is made from, and whether it may be missing."""
    hints = get_type_hints(shape)
    assert is_dataclass(shape)
    return {field.name: (hints[field.name], _has_default(field)) for field in fields(shape)}


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING
