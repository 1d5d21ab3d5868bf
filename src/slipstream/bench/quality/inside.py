"""Runs inside the sandbox: an answer's code, then its tests. `sandbox.py` starts it; it needs no packages.

The job comes as JSON on stdin, the verdict goes to what was stdout, behind a word that the answer cannot guess: what it
prints counts for nothing, and if it ends the process there is no verdict.
"""

import ast
import builtins
import functools
import importlib
import json
import os
import resource
import socket
import sys
import types
from typing import Any

_READY = b"."
"""Said before the job is read: by now bubblewrap has asked to end with the process that sends it."""
_FIRST_PROCESSES = 9
"""In a process namespace of its own bubblewrap is the first process, and this the second."""


def main() -> None:
    """Read the job, limit this process, run code and tests, say how it ended."""
    os.write(1, _READY)
    job = json.loads(sys.stdin.buffer.read())
    word, limits, is_confined = job.pop("word"), job.pop("limits"), job.pop("confined")
    verdict = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    _limit(limits, is_confined)
    hole = _hole() if is_confined else None
    reason = f"refused: {hole}" if hole else _reason(job)
    os.write(verdict, f"{word} {reason[:500]}".encode(errors="replace"))
    os._exit(0)  # nothing that the code left behind, such as a thread, runs on


def _limit(limits: dict[str, int], is_confined: bool) -> None:
    user, num_processes = limits.pop("user"), limits.pop("nproc")
    if is_confined:
        if os.getuid() == 0:  # started by root, whom no limit on processes binds
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        limits["nproc"] = num_processes  # unconfined, the user's other processes would count
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (most, most))


def _hole() -> str | None:
    """What the sandbox should have closed and has not."""
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        return "there is a network"
    if os.path.exists("/proc/self") or os.path.exists("/tmp"):
        return "there are files that should not be seen"
    if os.getpid() > _FIRST_PROCESSES:
        return "there are other processes"
    if os.access("/", os.W_OK) or os.access("/usr", os.W_OK):
        return "files outside the folder can be written"
    return None


def _reason(job: dict[str, Any]) -> str:
    """Why the tests did not pass, in a line; empty if they did."""
    sys.set_int_max_str_digits(0)  # values of any size are compared; the limits on time bound the cost
    try:
        _run(**job)
    except BaseException as error:  # code may end in any way, SystemExit too
        line = _line_of_tests(error)
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        return f"{text} (line {line} of the tests)" if line else text
    return ""


def _run(code: str, tests: str, prelude: str, under_test: list[str]) -> None:
    """What tests can see: the record's own code, and from the answer only what they name.

    An answer may not put a function of its own in place of a builtin (`all`), a module (`math`) or a helper that the
    record brings along, for the tests rely on these. The functions under test are the exception: they are the answer's.
    """
    names: dict[str, Any] = {"__name__": "tests", "__builtins__": dict(vars(builtins))}
    exec(compile(prelude, "prelude.py", "exec"), names)
    answer: dict[str, Any] = {"__name__": "answer", "__builtins__": builtins}
    exec(compile(code, "answer.py", "exec"), answer)
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    for name in used & set(answer):
        if name in under_test:
            names[name] = _without_stop(answer[name])
        elif name not in names and name not in names["__builtins__"]:
            is_module = name in sys.stdlib_module_names
            names[name] = importlib.import_module(name) if is_module else _without_stop(answer[name])
    exec(compile(tests, "tests.py", "exec"), names)


def _without_stop(value: Any) -> Any:
    """A function that cannot raise StopIteration: inside `all(map(f, cases))` it would end the tests as if passed."""
    if not isinstance(value, types.FunctionType):
        return value

    @functools.wraps(value)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return value(*arguments, **named)
        except StopIteration as error:
            raise RuntimeError("the code raised StopIteration") from error

    return call


def _line_of_tests(error: BaseException) -> int | None:
    place, line = error.__traceback__, None
    while place is not None:
        if place.tb_frame.f_code.co_filename == "tests.py":
            line = place.tb_lineno
        place = place.tb_next
    return line


if __name__ == "__main__":
    main()
