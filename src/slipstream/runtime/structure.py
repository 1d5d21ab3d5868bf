"""Tensors within what functions take and return: tuples, lists, dicts and dataclasses of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a value, in order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in _parts(value):
            yield from tensors_in(part)


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The value with other tensors, in the same order."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {name: with_tensors(part, tensors) for name, part in value.items()}
    if isinstance(value, list):
        return [with_tensors(part, tensors) for part in value]
    if isinstance(value, tuple):
        parts = [with_tensors(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if _is_record(value):
        return type(value)(*(with_tensors(part, tensors) for part in _parts(value)))
    return value


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return [getattr(value, one.name) for one in fields(value)] if _is_record(value) else []


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
