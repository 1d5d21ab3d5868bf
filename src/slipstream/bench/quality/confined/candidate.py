"""The process that holds the answer's code. It never sees the tests, only the values they pass to it.

Nothing here can be trusted once the code has run, for the code may change any of it. That is why nothing is decided
here: this process can only answer with values, and the judge compares them in a process of its own.
"""

from __future__ import annotations

import builtins
import os
import sys
from typing import Any, BinaryIO

from .kernel import RefusedError, confine
from .wire import WireError, decode, encode, receive, send


def main(folder: str, limits: dict[str, int]) -> None:
    """Serve the judge on the standard streams until it is done. The code under test finds those streams empty."""
    requests, replies = _take_streams()
    try:
        confine(folder=folder, **limits)
    except RefusedError as refused:
        return send(replies, ["refused", str(refused)])
    sys.set_int_max_str_digits(0)  # the judge compares values of any size; the limits on time bound the cost
    send(replies, ["ready"])
    objects = Objects()
    while True:
        try:
            request = receive(requests)
        except WireError:
            return None
        answer = _answer(objects, request)
        try:
            send(replies, answer)
        except WireError as error:  # a value that is too large
            send(replies, ["raised", "WireError", str(error)])


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to and from the judge, moved away from the numbers that print() and input() use."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    return requests, replies


class Objects:
    """The objects that the judge knows by number, and the module that the answer's code has become."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.numbers: dict[int, int] = {}  # by id(); what is kept keeps its id
        self.names: dict[str, Any] = {"__name__": "answer", "__builtins__": builtins}

    def refer(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.kept)
            self.kept.append(value)
        return self.numbers[id(value)]

    def find(self, number: int) -> Any:
        return self.kept[number]


def _answer(objects: Objects, request: list[Any]) -> list[Any]:
    """["value", what it returned, its changed arguments or None] or ["raised", kind, message]."""
    try:
        match request:
            case ["run", str(source)]:
                exec(compile(source, "answer.py", "exec"), objects.names)
                return ["value", [name for name in objects.names if not name.startswith("__")], None]
            case ["name", str(name)]:
                return ["value", encode(objects.names[name], objects.refer), None]
            case ["get", int(number), str(name)]:
                return ["value", encode(getattr(objects.find(number), name), objects.refer), None]
            case ["call", int(number), sent]:
                return _call(objects, number, sent)
        raise WireError(f"no such request: {request!r}")
    except BaseException as error:  # SystemExit, KeyboardInterrupt: whatever the code raises is its answer
        return ["raised", type(error).__name__, str(error)[:500]]


def _call(objects: Objects, number: int, sent: Any) -> list[Any]:
    arguments, named = decode(sent, objects.find)
    result = objects.find(number)(*arguments, **named)
    after = encode((arguments, named), objects.refer)
    return ["value", encode(result, objects.refer), after if after != sent else None]
