"""The process that holds the tests. It alone says whether they passed.

The names that the tests use and the answer defines become stand-ins here: calling one sends the arguments to the
candidate's process and brings back a value as plain data. So an answer passes by returning the right values and in no
other way: exiting, patching `assert` or a builtin, returning objects that equal everything, and looking for the tests
all happen in a process where they change nothing. Tests themselves are trusted to judge, but confined all the same.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
from typing import Any, BinaryIO

from .kernel import RefusedError, confine
from .wire import WireError, decode, encode, receive, send


def main(requests: int, replies: int, limits: dict[str, int]) -> None:
    """Read the job from stdin, write the verdict to stdout: {"status", "reason"}.

    `requests` and `replies` are the descriptors of the pipes to and from the candidate.
    """
    verdict = os.fdopen(os.dup(1), "wb")
    candidate = Candidate(os.fdopen(requests, "wb"), os.fdopen(replies, "rb"))
    job = json.loads(sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    status, reason = _judge(candidate, job, limits)
    send(verdict, {"status": status, "reason": reason[:500]})
    verdict.close()
    os._exit(0)  # nothing that the tests left behind, such as a thread, runs on


def _judge(candidate: Candidate, job: dict[str, Any], limits: dict[str, int]) -> tuple[str, str]:
    try:
        confine(folder=None, **limits)
        candidate.wait_until_ready()
    except RefusedError as refused:
        return "refused", str(refused)
    except WireError as error:
        return "failed", str(error)
    sys.set_int_max_str_digits(0)
    try:
        offered = candidate.run(job["code"])
        names = _names_for_tests(candidate, job, offered)
        exec(compile(job["tests"], "tests.py", "exec"), names)
    except BaseException as error:  # a test may end in any way, SystemExit too; all but the last line is a failure
        return "failed", _in_words(error)
    return "passed", ""


def _in_words(error: BaseException) -> str:
    kind = "" if isinstance(error, WireError) else f"{getattr(error, 'kind', type(error).__name__)}: "
    line = _line_of_tests(error)
    return f"{kind}{error}".rstrip(": ") + (f" (line {line} of the tests)" if line else "")


def _line_of_tests(error: BaseException) -> int | None:
    place, line = error.__traceback__, None
    while place is not None:
        if place.tb_frame.f_code.co_filename == "tests.py":
            line = place.tb_lineno
        place = place.tb_next
    return line


def _names_for_tests(candidate: Candidate, job: dict[str, Any], offered: list[str]) -> dict[str, Any]:
    """What the tests can see: the record's own code, run here, and from the answer only what they name.

    An answer may not put a function of its own in place of a builtin (`all`), a module (`math`) or a helper that the
    record brings along, for the tests rely on these. The functions under test are the exception: they are the answer's.
    """
    names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    exec(compile(job["prelude"], "prelude.py", "exec"), names)
    for name in sorted(_used(job["tests"]) & set(offered)):
        if name in job["under_test"]:
            names[name] = candidate.name(name)
        elif name not in names and not hasattr(builtins, name):
            names[name] = _module(name) or candidate.name(name)
    return names


def _used(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def _module(name: str) -> Any:
    return importlib.import_module(name) if name in sys.stdlib_module_names else None


class AnswerError(Exception):
    """An exception of a kind that has no counterpart here, or that would end more than the call."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Candidate:
    """The other process, as one can call it."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self.requests, self.replies = requests, replies

    def wait_until_ready(self) -> None:
        """Raises RefusedError if it could not be confined."""
        match receive(self.replies):
            case ["ready"]:
                return
            case ["refused", str(reason)]:
                raise RefusedError(reason)
        raise WireError("the code's process did not start")

    def run(self, source: str) -> list[str]:
        """Run the answer's code; the names that it defines."""
        names = self.ask(["run", source])[0]
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def name(self, name: str) -> Any:
        return self.value(self.ask(["name", name])[0])

    def value(self, data: Any) -> Any:
        return decode(data, lambda number: StandIn(self, number))

    def ask(self, request: list[Any]) -> list[Any]:
        """[result, changed arguments or None]; raises what the code raised."""
        send(self.requests, request)
        match receive(self.replies):
            case ["value", result, changed]:
                return [result, changed]
            case ["raised", str(kind), str(message)]:
                raise _exception(kind, message)
        raise WireError("the code sent something that is no reply")


def _exception(kind: str, message: str) -> Exception:
    """The builtin exception of that name, for tests that expect one.

    Not StopIteration and its like: raised inside `all(map(f, cases))` they would end the tests early, as if passed.
    """
    found = getattr(builtins, kind, None)
    ends_loops = (StopIteration, StopAsyncIteration)
    if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, ends_loops):
        try:
            return found(message)
        except TypeError:
            pass  # a kind that wants more than a message, such as an exception group
    return AnswerError(kind, message)


class StandIn:
    """An object of the candidate's process. Equal to another stand-in if the candidate says so, to nothing else."""

    def __init__(self, candidate: Candidate, number: int) -> None:
        self._candidate, self._number = candidate, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        candidate = self._candidate
        sent = encode((list(arguments), named), _number_of)
        result, changed = candidate.ask(["call", self._number, sent])
        if changed is not None:
            _bring_up_to_date((list(arguments), named), candidate.value(changed))
        return candidate.value(result)

    def __getattr__(self, name: str) -> Any:
        return self._candidate.value(self._candidate.ask(["get", self._number, name])[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StandIn) and self.__getattr__("__eq__")(other) is True

    def __hash__(self) -> int:
        return hash(self._number)

    def __len__(self) -> int:
        return int(self.__getattr__("__len__")())

    def __iter__(self) -> Any:
        return iter(self.__getattr__("__iter__")())

    def __getitem__(self, key: Any) -> Any:
        return self.__getattr__("__getitem__")(key)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return str(self.__getattr__("__str__")())


def _number_of(value: Any) -> int:
    if isinstance(value, StandIn):
        return value._number
    raise TypeError(f"a test passes {type(value).__name__}, which cannot be sent into the sandbox")


def _bring_up_to_date(before: Any, after: Any) -> None:
    """Change the arguments in place, as the call did: tests of functions that sort their list look at the list."""
    (arguments, named), (new_arguments, new_named) = before, after
    for old, new in [*zip(arguments, new_arguments, strict=True), *((named[key], new_named[key]) for key in named)]:
        if type(old) is not type(new):
            continue
        if isinstance(old, list):
            old[:] = new
        elif isinstance(old, dict | set):
            old.clear()
            old.update(new)
