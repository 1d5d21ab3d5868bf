"""Values as lines of text between two processes that do not trust each other.

Plain data (None, bool, numbers, text, bytes, lists, tuples, dicts, sets, iterators of these) is copied. An instance of
a subclass arrives as its plain base, so a list with an `__eq__` of its own is compared as a list. Everything else (a
function, a class, an instance of one) stays where it is: a number stands for it, by which the other side asks.

JSON is the carrier because reading it can build nothing but data, unlike pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, BinaryIO

MAX_LINE = 4 << 20
"""Bytes in a message at most. A longer one is an error, not a wait."""

MAX_ITERATED = 100_000
"""Items taken from an iterator at most: it may be endless."""


class WireError(Exception):
    """The other side ended, or sent something that is not a message."""


def send(pipe: BinaryIO, message: Any) -> None:
    """Write one message. Raises WireError when it is too long or the reader is gone."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise WireError(f"a value is too large: {len(line)} bytes, at most {MAX_LINE}")
    try:
        pipe.write(line)
        pipe.flush()
    except BrokenPipeError:
        raise WireError("the code ended before its tests did") from None


def receive(pipe: BinaryIO) -> Any:
    """The next message. Raises WireError when there is none or it is not one."""
    line = pipe.readline(MAX_LINE + 1)
    if not line.endswith(b"\n"):
        raise WireError("the code sent too much" if len(line) > MAX_LINE else "the code ended before its tests did")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise WireError("the code sent something that is no value") from None


def encode(value: Any, refer: Callable[[Any], int]) -> Any:
    """A value as JSON can hold it; `refer` gives the number of an object that is no plain data."""

    def items(values: Any) -> list[Any]:
        return [encode(item, refer) for item in values]

    match value:
        case None | bool():
            return value
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case str():
            return str.__str__(value)
        case complex():
            return ["complex", value.real, value.imag]
        case bytes():
            return ["bytes", value.hex()]
        case bytearray():
            return ["bytearray", value.hex()]
        case tuple():
            return ["tuple", items(tuple.__iter__(value))]
        case list():
            return ["list", items(list.__iter__(value))]
        case frozenset():
            return ["frozenset", items(frozenset.__iter__(value))]
        case set():
            return ["set", items(set.__iter__(value))]
        case dict():
            return ["dict", [[encode(key, refer), encode(item, refer)] for key, item in dict.items(value)]]
        case range():
            return ["range", [value.start, value.stop, value.step]]
        case Iterator():
            return ["iterator", items(islice(value, MAX_ITERATED))]
    return ["object", refer(value)]


def decode(data: Any, find: Callable[[int], Any]) -> Any:
    """The value that `encode` wrote; `find` gives the stand-in for an object's number. Raises WireError."""
    try:
        return _decode(data, find)
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        raise WireError(f"the code sent something that is no value: {type(error).__name__}") from None


def _decode(data: Any, find: Callable[[int], Any]) -> Any:
    def items(values: list[Any]) -> list[Any]:
        return [_decode(item, find) for item in values]

    match data:
        case None | bool() | int() | float() | str():
            return data
        case ["complex", float(real), float(imag)]:
            return complex(real, imag)
        case ["bytes", str(text)]:
            return bytes.fromhex(text)
        case ["bytearray", str(text)]:
            return bytearray.fromhex(text)
        case ["tuple", list(values)]:
            return tuple(items(values))
        case ["list", list(values)]:
            return items(values)
        case ["frozenset", list(values)]:
            return frozenset(items(values))
        case ["set", list(values)]:
            return set(items(values))
        case ["dict", list(pairs)]:
            return {_decode(key, find): _decode(value, find) for key, value in pairs}
        case ["range", [int(start), int(stop), int(step)]]:
            return range(start, stop, step)
        case ["iterator", list(values)]:
            return iter(items(values))
        case ["object", int(number)]:
            return find(number)
    raise ValueError("no such kind of value")
