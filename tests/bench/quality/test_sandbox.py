"""Right code passes, wrong code fails, and hostile code neither passes by what it prints nor gets out, nor stays.

What the sandbox is said to prevent is also done without it: an attempt that fails in any case would prove nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from slipstream.bench.quality import sandbox
from slipstream.bench.quality.sandbox import Job, Limits, Outcome, run_tests
from slipstream.errors import InputError

isolated = pytest.mark.skipif(sandbox.missing_part() is not None, reason=str(sandbox.missing_part()))

RIGHT = "def f(x):\n    return x + 1\n"
TESTS = "assert f(1) == 2"


def run(code: str, tests: str = TESTS, **more) -> Outcome:
    return run_tests(Job(code=code, tests=tests, under_test=("f",), **more), Limits(cpu_s=2, wall_s=20))


# Right and wrong answers


@isolated
@pytest.mark.parametrize(
    ("code", "tests"),
    [
        (RIGHT, TESTS),
        (RIGHT, "def check(candidate):\n    assert candidate(-1) == 0\n\ncheck(f)"),
        ("def f(x):\n    x.sort()", "values = [3, 1]\nassert f(values) is None\nassert values == [1, 3]"),
        ("def f(x):\n    raise ValueError('no')", "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass"),
        (
            "class Pair:\n    def __init__(self, a):\n        self.a = a\ndef f(x):\n    return Pair(x).a",
            "assert f(3) == 3",
        ),
        ("def f(x):\n    open('a', 'w').write('2')\n    return int(open('a').read())", TESTS),
        ("import re, random, decimal, threading, hashlib\ndef f(x):\n    return len(re.findall('a', 'aa'))", TESTS),
    ],
)
def test_right_code_passes(code: str, tests: str) -> None:
    assert run(code, tests) == Outcome(True)


@isolated
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x):\n    return x", "AssertionError (line 1 of the tests)"),
        ("def f(x):\n    return 1 / 0", "ZeroDivisionError: division by zero (line 1 of the tests)"),
        ("def f(x)\n    return 2", "SyntaxError"),
        ("def g(x):\n    return 2", "NameError"),
    ],
)
def test_wrong_code_fails_with_a_reason(code: str, reason: str) -> None:
    outcome = run(code)
    assert not outcome.passed
    assert reason in outcome.reason


# Verdicts

FORGERIES = {
    "exit at once": "import sys\nsys.exit(0)",
    "exit in the call": "import os\ndef f(x):\n    os._exit(0)",
    "SystemExit": "def f(x):\n    raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "prints": "print('passed')\ndef f(x):\n    print('{\"passed\": true}')\n    return 7",
    "success on every descriptor": (
        "import os\ndef f(x):\n    for number in range(64):\n        try:\n            os.write(number, b' ')\n"
        "        except OSError:\n            pass\n    os._exit(0)"
    ),
    "patched builtins": (
        "import builtins, sys\nbuiltins.AssertionError = Warning\nbuiltins.all = lambda values: True\n"
        "sys.excepthook = print\ndef f(x):\n    return 7"
    ),
    "StopIteration": "def f(x):\n    raise StopIteration",
}


@isolated
@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_is_not_forged_by_printing_or_ending(name: str) -> None:
    tests = "assert all(map(lambda x: f(x) == x + 1, [1, 2]))\nassert f(1) == 2"
    assert not run(FORGERIES[name], tests).passed


@isolated
def test_code_cannot_replace_what_the_tests_rely_on() -> None:
    code = "def f(x):\n    return 7\ndef all(values):\n    return True\nhelper = all\n"
    code += "class math:\n    isclose = lambda *a: True\nisclose = math.isclose"
    prelude = "from math import isclose\ndef helper(x):\n    return x == 2"
    for one in (
        "assert all([f(1) == 2])",
        "assert math.isclose(f(1), 2)",
        "assert helper(f(1))",
        "assert isclose(f(1), 2)",
    ):
        assert not run(code, one, prelude=prelude).passed, one


# Ways out

ATTEMPTS = """
import os, signal, socket, subprocess

outside, port, unix, parent = {outside!r}, {port!r}, {unix!r}, {parent!r}


def connect(kind, address):
    with socket.socket(kind, socket.SOCK_STREAM) as one:
        one.settimeout(2)
        one.connect(address)


def through_symlink():
    os.symlink(outside, "link")
    open("link/through-symlink", "w").close()


attempts = {{
    "read": lambda: open(f"{{outside}}/file").read(),
    "list": lambda: os.listdir(outside),
    "home": lambda: open(os.path.expanduser("~/{home}")).read(),
    "passwords": lambda: open("/etc/passwd").read(),
    "write": lambda: open(f"{{outside}}/new", "w").close(),
    "write through a symlink": through_symlink,
    "write to shared memory": lambda: open("/dev/shm/slipstream-test", "w").close(),
    "write to /": lambda: open("/slipstream-test", "w").close(),
    "delete": lambda: os.unlink(f"{{outside}}/victim"),
    "chmod": lambda: os.chmod(f"{{outside}}/file", 0o777),
    "tcp": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
    "unix socket": lambda: connect(socket.AF_UNIX, unix),
    "abstract unix socket": lambda: connect(socket.AF_UNIX, "\\0slipstream-test"),
    "other processes": lambda: os.listdir(f"/proc/{{parent}}"),
    "signal": lambda: os.kill(parent, 0),
    "environment": lambda: os.environ["HOME"],
    "raise a limit": lambda: __import__("resource").setrlimit(7, (4096, 4096)),
}}


def f(x):
    done = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except BaseException:
            continue
        done.append(name)
    return done
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder with files, servers that listen, and the code that goes for them."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("file", "victim", ".secret"):
        (folder / name).write_text("text")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        unix.bind(str(tmp_path / "socket"))
        abstract.bind("\0slipstream-test")
        unix.listen()
        abstract.listen()
        places = {"outside": str(folder), "port": tcp.getsockname()[1], "unix": str(tmp_path / "socket")}
        yield folder, ATTEMPTS.format(**places, parent=os.getpid(), home=".secret")


@isolated
def test_no_way_out_is_open(outside: tuple[Path, str]) -> None:
    folder, code = outside
    before = {path.name: (path.read_text(), path.stat().st_mode) for path in folder.iterdir()}
    assert run(code, "done = f(1)\nassert done == [], done") == Outcome(True)
    assert {path.name: (path.read_text(), path.stat().st_mode) for path in folder.iterdir()} == before


def test_every_way_out_is_open_without_the_sandbox(outside: tuple[Path, str], tmp_path: Path) -> None:
    _, code = outside
    program = f"{code}\nprint(sorted(set(attempts) - set(f(1))))"
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    finally:
        for path in (Path("/dev/shm/slipstream-test"), Path("/slipstream-test")):
            path.unlink(missing_ok=True)
    closed = ["[]", "['write to /']"]  # a user who is not root
    assert done.stdout.strip() in closed


# Using things up


@isolated
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True:\n    pass", "killed: more than 1 s of processor time"),
        ("while True:\n    print('x' * 100_000)", "killed: more than 1 s of processor time"),
        ("kept = bytearray(4 << 30)\ndef f(x):\n    return 2", "MemoryError"),
        ("def f(x):\n    return f(x)", "RecursionError"),
        ("import os, time\nwhile True:\n    os.fork() or time.sleep(60)", "BlockingIOError"),
        (
            "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=[60]).start()",
            "RuntimeError",
        ),
        ("with open('big', 'wb') as file:\n    file.write(bytes(9 << 20))", "OSError"),
        (
            "for number in range(5):\n    with open(str(number), 'wb') as one:\n        one.write(bytes(7 << 20))",
            "No space left on device",
        ),
        ("open_files = [open(str(number), 'w') for number in range(100)]", "OSError"),
    ],
)
def test_what_code_uses_up_is_bounded(code: str, reason: str) -> None:
    outcome = run_tests(Job(code=code, tests=TESTS, under_test=("f",)), Limits(cpu_s=1, wall_s=30, folder_mib=16))
    assert not outcome.passed
    assert reason in outcome.reason


@isolated
def test_code_and_tests_that_wait_are_stopped() -> None:
    for job in (Job(code="import time\ntime.sleep(60)", tests=""), Job(code="", tests="import time\ntime.sleep(60)")):
        assert run_tests(job, Limits(wall_s=1)) == Outcome(False, "killed: more than 1 s")


# Nothing is left


@isolated
@pytest.mark.parametrize("code", [RIGHT, "import os, time\nos.fork()\ntime.sleep(61.25)", "import os\nos._exit(0)"])
def test_no_process_file_or_descriptor_is_left(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = os.listdir("/proc/self/fd")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run_tests, Job(code=f"open('file', 'w').close()\n{code}", tests=TESTS), Limits(wall_s=1))
        begun = set()
        while not done.done():
            begun |= inside_processes(os.getpid())
    assert list(tmp_path.iterdir()) == []
    assert os.listdir("/proc/self/fd") == descriptors
    assert begun
    assert wait_until(lambda: not any(map(is_there, begun)))


@isolated
def test_the_processes_die_with_a_killed_parent() -> None:
    program = (
        "from slipstream.bench.quality.sandbox import *\n"
        "run_tests(Job(code='import time\\ntime.sleep(60)', tests='f'), Limits(wall_s=60))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        assert wait_until(lambda: inside_processes(parent.pid))
        begun = inside_processes(parent.pid)
        parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_there, begun)))


@isolated
def test_a_parent_that_is_killed_at_any_moment_leaves_no_process() -> None:
    """Bubblewrap is told to end with its parent some time after it begins; a parent may die before that."""
    program = (
        "from slipstream.bench.quality.sandbox import *\nmissing_part()\nprint('now', flush=True)\n"
        "run_tests(Job(code='import time\\ntime.sleep(60)', tests='f'), Limits(wall_s=60))"
    )
    for delay_ms in range(1, 9):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            parent.stdout.readline()
            time.sleep(delay_ms / 1e3)
            parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not orphans())


Process = tuple[int, str]
"""Its number and when it began: together no other has them."""


def inside_processes(parent: int) -> set[Process]:
    """Processes in a sandbox, and bubblewrap's around them, that a process began."""
    found, processes = set(), sandbox_processes()
    for number, (began, above) in processes.items():
        while above in processes:
            above = processes[above][1]
        if above == parent:
            found.add((number, began))
    return found


def orphans() -> set[Process]:
    """Those whose parent is gone, so that a process which is no Python has adopted them."""
    processes = sandbox_processes()
    adopted = {number: one for number, one in processes.items() if one[1] not in processes}
    return {(n, began) for n, (began, above) in adopted.items() if b"python" not in line_of(above)}


def is_there(process: Process) -> bool:
    """Whether a process still is."""
    return sandbox_processes().get(process[0], ("", 0))[0] == process[1]


def sandbox_processes() -> dict[int, tuple[str, int]]:
    """By number: when it began, and its parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        if line_of(int(path.name)).endswith(b"/inside.py"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state = (path / "stat").read_text().rpartition(")")[2].split()
                found[int(path.name)] = (state[19], int(state[1]))
    return found


def line_of(process: int) -> bytes:
    """The command line; empty for one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_bytes().rstrip(b"\0")
    return b""


def wait_until(holds) -> bool:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(holds())


# Where it is not available


@pytest.fixture
def fresh() -> Iterator[None]:
    sandbox.missing_part.cache_clear()
    yield
    sandbox.missing_part.cache_clear()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("sys.platform", "darwin"), "isolation needs Linux, and this is darwin"),
        (("_bubblewrap", lambda: None), "isolation needs bubblewrap"),
        (("_bubblewrap", lambda: "/bin/false"), "bubblewrap cannot isolate it here"),
    ],
)
def test_code_is_refused_in_one_line_where_nothing_isolates(fresh, monkeypatch, change, says: str) -> None:
    monkeypatch.setattr(f"{sandbox.__name__}.{change[0]}", change[1])
    with pytest.raises(InputError, match=says) as error:
        run_tests(Job(code=RIGHT, tests=TESTS))
    assert "--unconfined" in str(error.value)
    assert "\n" not in str(error.value)


@isolated
@pytest.mark.parametrize("left_out", ["--unshare-net", "--unshare-pid"])
def test_a_part_that_does_not_take_is_noticed(fresh, monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """A planted fault: the code must not run in a sandbox with a hole."""
    command = sandbox._command
    monkeypatch.setattr(sandbox, "_command", lambda limits: [word for word in command(limits) if word != left_out])
    with pytest.raises(InputError, match="refused: "):
        run_tests(Job(code=RIGHT, tests=TESTS))


def test_unconfined_code_is_only_bounded() -> None:
    assert run_tests(Job(code=RIGHT, tests=TESTS), confined=False) == Outcome(True)
    outcome = run_tests(Job(code="while True:\n    pass", tests=""), Limits(cpu_s=1, wall_s=20), confined=False)
    assert outcome == Outcome(False, "killed: more than 1 s of processor time")
