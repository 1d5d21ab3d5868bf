"""Running the code of an answer against tests, without trusting the code.

Two fresh interpreters, each confined by the kernel (`confined.kernel`): the candidate holds the answer's code, the
judge holds the tests, and plain values are all that passes between them (`confined.judge` says why). Neither can open
a socket, start a process, signal another, or use more than `Limits` allows; the candidate writes files in a temporary
folder that is gone afterwards, the judge writes nowhere. Each is a single process, so killing it leaves nothing.

Linux on x86_64 or aarch64, 5.13 or newer; elsewhere `check_sandbox` and `run_tests` raise InputError. What the sandbox
does not do stands in docs/quality.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from slipstream.bench.quality.confined.kernel import missing_part
from slipstream.errors import InputError

MAX_VERDICT = 1 << 16
POLL_S = 0.1
BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the code of one answer may use up."""

    wall_s: float = 10.0
    """From its start to its verdict."""
    cpu_s: int = 5
    """Processor time of each of the two processes, over all threads."""
    memory_gib: float = 1.0
    """Address space of each."""
    file_mib: int = 8
    """Of one file."""
    folder_mib: int = 64
    """Of all files together, 4 KiB each at least; looked at ten times a second."""
    num_files: int = 64
    """Open at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Code and how to test it."""

    code: str
    """The module that the answer makes."""
    tests: str
    """Python that raises unless the code is right."""
    prelude: str = ""
    """The record's own imports and helpers, which the tests use; a function under test may stand here as a stub."""
    under_test: tuple[str, ...] = ()
    """Functions that the tests take from the code even where the prelude or Python has something of that name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the tests passed and, if not, why not, in a line."""

    passed: bool
    reason: str = ""


def check_sandbox() -> None:
    """Raises InputError, naming what is missing, where code cannot be run safely."""
    _refuse(missing_part())


def run_tests(job: Job, limits: Limits | None = None) -> Outcome:
    """Run the tests of one answer. Leaves no process, no zombie and no file behind, however it ends.

    Raises InputError where the sandbox is not available.
    """
    check_sandbox()
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="slipstream-", ignore_cleanup_errors=True) as folder:
        verdict, candidate_status = _run(job, limits, Path(folder).resolve())
    match verdict:
        case {"status": "passed"}:
            return Outcome(True)
        case {"status": "refused", "reason": str(reason)}:
            _refuse(reason)
        case {"status": "failed", "reason": str(reason)}:
            return Outcome(False, _cause(candidate_status, limits) or reason)
        case str(reason):
            return Outcome(False, _cause(candidate_status, limits) or reason)
    return Outcome(False, "the tests ended their process")


def _refuse(missing: str | None) -> None:
    if missing is not None:
        raise InputError(
            f"code is not run: the sandbox needs {missing}. Leave --run-code out, or score on a machine that has it."
        )


def _cause(status: int | None, limits: Limits) -> str | None:
    """What the candidate's exit status adds to the judge's view, which is only that it ended."""
    if status == -signal.SIGKILL or status == -signal.SIGXCPU:
        return f"killed: more than {limits.cpu_s} s of processor time"
    return None


# Processes


def _run(job: Job, limits: Limits, folder: Path) -> tuple[Any, int | None]:
    """The judge's verdict, or in its place a line that says why there is none; and the candidate's exit status."""
    deadline = time.monotonic() + limits.wall_s
    bounds = {
        "cpu_s": limits.cpu_s,
        "memory_bytes": int(limits.memory_gib * 2**30),
        "file_bytes": limits.file_mib << 20,
        "num_files": limits.num_files,
    }
    requests_out, requests_in = os.pipe()
    replies_out, replies_in = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        try:
            call = f"candidate.main({str(folder)!r}, {bounds!r})"
            processes.append(_start("candidate", call, folder, stdin=requests_out, stdout=replies_in))
            call = f"judge.main({requests_in}, {replies_out}, {bounds!r})"
            ends = (requests_in, replies_out)
            processes.append(_start("judge", call, folder, subprocess.PIPE, subprocess.PIPE, keep=ends))
        finally:
            for end in (requests_out, requests_in, replies_out, replies_in):
                os.close(end)
        candidate, judge = processes
        _send(judge, job)
        verdict = _read_verdict(judge, folder, limits, deadline)
        return verdict, _status(candidate)
    finally:
        for process in processes:
            _end(process)


def _start(
    role: str, call: str, folder: Path, stdin: int, stdout: int, keep: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A fresh interpreter without environment, site packages or terminal, in a session of its own.

    The one variable fixes the order of sets, so that equal code gets equal scores.
    """
    here = str(Path(__file__).resolve().parent)
    program = f"import sys; sys.path.insert(0, {here!r}); from confined import {role}; del sys.path[0]; {call}"
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-S", "-c", program],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PYTHONHASHSEED": "0"},
        pass_fds=keep,
        start_new_session=True,
    )


def _send(judge: subprocess.Popen[bytes], job: Job) -> None:
    """Hand the job over. A judge that ended already has its verdict, or none, in the other pipe."""
    message = {"code": job.code, "tests": job.tests, "prelude": job.prelude, "under_test": job.under_test}
    assert judge.stdin is not None
    try:
        with judge.stdin as pipe:
            pipe.write(json.dumps(message).encode())
    except BrokenPipeError:
        pass


def _read_verdict(judge: subprocess.Popen[bytes], folder: Path, limits: Limits, deadline: float) -> Any:
    assert judge.stdout is not None
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(judge.stdout, selectors.EVENT_READ)
        while (left_s := deadline - time.monotonic()) > 0:
            if selector.select(min(left_s, POLL_S)):
                chunk = _read(judge.stdout)
                received += chunk
                if not chunk or len(received) > MAX_VERDICT:
                    return _parse(received)
            elif _size(folder) > limits.folder_mib << 20:
                return f"killed: more than {limits.folder_mib} MiB of files"
    return f"killed: more than {limits.wall_s:g} s"


def _read(pipe: IO[bytes]) -> bytes:
    return os.read(pipe.fileno(), MAX_VERDICT)


def _parse(received: bytes) -> Any:
    try:
        return json.loads(received)
    except ValueError:
        return None


def _size(folder: Path) -> int:
    """Bytes in `folder`, while the code may be changing it. An empty file takes up a block of the disk too."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            total += max(entry.stat(follow_symlinks=False).st_size, BLOCK)
    return total


def _status(candidate: subprocess.Popen[bytes]) -> int | None:
    """Its exit status if it has ended, which a process killed by the kernel does a moment after its pipe closes."""
    try:
        return candidate.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and nothing of it was left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
