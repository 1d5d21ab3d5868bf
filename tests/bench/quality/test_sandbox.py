"""Right code passes, wrong code fails, and hostile code neither passes nor gets out, nor stays.

Sockets in here go to 127.0.0.1 only. What the sandbox is said to prevent is also done without it, so that a test that
would hold in any case is found out.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from slipstream.bench.quality import sandbox
from slipstream.bench.quality.confined import kernel, syscalls
from slipstream.bench.quality.sandbox import Job, Limits, run_tests
from slipstream.errors import InputError

linux_only = pytest.mark.skipif(kernel.missing_part() is not None, reason=f"the sandbox needs {kernel.missing_part()}")

RIGHT = "def f(x):\n    return x + 1\n"
TESTS = "assert f(1) == 2"


def run(code: str, tests: str = TESTS, **more) -> sandbox.Outcome:
    return run_tests(Job(code=code, tests=tests, under_test=("f",), **more), Limits(cpu_s=2, wall_s=20))


# Right and wrong answers


@linux_only
@pytest.mark.parametrize(
    ("code", "tests"),
    [
        (RIGHT, TESTS),
        (RIGHT, "def check(candidate):\n    assert candidate(-1) == 0\n\ncheck(f)"),
        (
            "import math\ndef f(x):\n    return {x: (math.inf, {1.5}, b'a')}",
            "assert f(1) == {1: (math.inf, {1.5}, b'a')}",
        ),
        ("def f(x):\n    x.sort()", "values = [3, 1]\nassert f(values) is None\nassert values == [1, 3]"),
        ("def f(x):\n    yield from range(x)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x):\n    raise ValueError('no')", "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass"),
        (
            "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
            "def f(pairs):\n    return sum(pair.a for pair in pairs)",
            "assert f([Pair(1, 2), Pair(3, 4)]) == 4\nassert Pair(5, 6).b == 6",
        ),
        ("def f(x):\n    open('a', 'w').write('2')\n    return int(open('a').read())", TESTS),
        (
            "import threading\ndef f(x):\n    found = []\n    one = threading.Thread(target=found.append, args=[2])\n"
            "    one.start()\n    one.join()\n    return found[0]",
            TESTS,
        ),
        (
            "import re, random, decimal, heapq, datetime, hashlib\ndef f(x):\n    return len(re.findall('a', 'aa'))",
            TESTS,
        ),
    ],
)
def test_right_code_passes(code, tests):
    assert run(code, tests) == sandbox.Outcome(True)


@linux_only
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x):\n    return x", "AssertionError (line 1 of the tests)"),
        ("def f(x):\n    return 1 / 0", "ZeroDivisionError: division by zero (line 1 of the tests)"),
        ("def f(x)\n    return 2", "SyntaxError"),
        ("def g(x):\n    return 2", "NameError"),
        ("f = 2", "TypeError"),
    ],
)
def test_wrong_code_fails_with_a_reason(code, reason):
    outcome = run(code)
    assert not outcome.passed
    assert reason in outcome.reason


# Hostile code: verdicts

FORGERIES = {
    "exit at once": "import sys\nsys.exit(0)",
    "exit in the call": "import os\ndef f(x):\n    os._exit(0)",
    "raise SystemExit": "def f(x):\n    raise SystemExit(0)",
    "raise KeyboardInterrupt": "raise KeyboardInterrupt",
    "equal to everything": "class Any(int):\n    __eq__ = lambda self, other: True\ndef f(x):\n    return Any(7)",
    "an object equal to everything": (
        "class Meta(type):\n    __eq__ = lambda self, other: True\n    __hash__ = type.__hash__\n"
        "class Any(metaclass=Meta):\n    __eq__ = lambda self, other: True\ndef f(x):\n    return Any"
    ),
    "patched builtins": (
        "import builtins, sys\nbuiltins.AssertionError = Warning\nbuiltins.all = lambda values: True\n"
        "sys.excepthook = sys.unraisablehook = print\nsys.settrace(lambda *a: None)\ndef f(x):\n    return 7"
    ),
    "success on every descriptor": (
        "import os\ndef f(x):\n    for number in range(64):\n        try:\n"
        '            os.write(number, b\'\\n{"status": "passed", "reason": ""}\\n\')\n'
        "        except OSError:\n            pass\n    return 7"
    ),
    "replies ahead of the questions": (
        "import os\nfor number in range(3, 64):\n    try:\n        os.write(number, b'[\"value\", 2, null]\\n' * 3)\n"
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "patched judge": "import confined.judge as one\none._judge = lambda *a: ('passed', '')\ndef f(x):\n    return 7",
}


@linux_only
@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(name):
    assert not run(FORGERIES[name], "assert f(1) == 2\nassert f(2) == 3\nassert all(f(x) == x + 1 for x in [3])").passed


@linux_only
def test_code_cannot_replace_what_the_tests_rely_on():
    code = "def f(x):\n    return 7\ndef all(values):\n    return True\nhelper = all\n"
    code += "class math:\n    isclose = lambda *a: True\nisclose = math.isclose"
    tests = (
        "assert all([f(1) == 2])",
        "assert math.isclose(f(1), 2)",
        "assert helper(f(1))",
        "assert isclose(f(1), 2)",
    )
    for one in tests:
        job = Job(
            code=code,
            tests=one,
            prelude="from math import isclose\ndef helper(x):\n    return x == 2",
            under_test=("f",),
        )
        assert not run_tests(job).passed, one


@linux_only
def test_stop_iteration_does_not_end_the_tests_early():
    assert not run("def f(x):\n    raise StopIteration", "assert all(map(lambda x: f(x) == x + 1, [1, 2]))").passed


@linux_only
def test_code_cannot_find_the_tests():
    code = (
        "import gc, os, sys\ndef f(x):\n    seen = [str(o) for o in gc.get_objects() if isinstance(o, (list, dict))]\n"
        "    frame = sys._getframe()\n    while frame:\n        seen += map(str, frame.f_locals.values())\n"
        "        frame = frame.f_back\n    return any('SEC' + 'RET' in text for text in seen) or os.listdir('.') != []"
    )
    assert run(code, "SECRET = 5\nassert f(1) is False").passed


# Hostile code: ways out

ATTEMPTS = """
import ctypes, fcntl, os, resource, signal, socket, subprocess, threading

outside, port, unix = {outside!r}, {port!r}, {unix!r}
kept = []


def through_symlink():
    os.symlink(outside, "link")
    open("link/through-symlink", "w").close()


def into_shared_memory():
    open(f"/dev/shm/{{os.path.basename(outside)}}", "w").close()


def fork():
    if os.fork() == 0:
        os._exit(0)  # not waited for: that is closed too, and would hide an open fork


def fork_twice():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(f"{{outside}}/daemon", "w").close()
            os._exit(0)
        os._exit(0)
    os.wait()


def exec_in_fork():
    if os.system("true") != 0:
        raise OSError


def own_signal_by_fcntl():
    reader, writer = os.pipe()
    fcntl.fcntl(reader, 8, os.getppid())  # F_SETOWN


def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", port))


def unix_socket():
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(unix)


attempts = {{
    "write": lambda: open(f"{{outside}}/new", "w").close(),
    "write with ..": lambda: open(os.path.relpath(outside) + "/dots", "w").close(),
    "write through a symlink": through_symlink,
    "write to shared memory": into_shared_memory,
    "append": lambda: open(f"{{outside}}/file", "a").close(),
    "delete": lambda: os.unlink(f"{{outside}}/victim"),
    "rename": lambda: os.rename(f"{{outside}}/file2", f"{{outside}}/file3"),
    "steal": lambda: os.rename(f"{{outside}}/file4", "stolen"),
    "link": lambda: os.link(f"{{outside}}/file", "linked"),
    "truncate": lambda: os.truncate(f"{{outside}}/file", 0),
    "chmod": lambda: os.chmod(f"{{outside}}/file", 0o777),
    "utime": lambda: os.utime(f"{{outside}}/file", (0, 0)),
    "chown": lambda: os.chown(f"{{outside}}/file", os.getuid(), os.getgid()),
    "mkdir": lambda: os.mkdir(f"{{outside}}/folder"),
    "fifo": lambda: os.mkfifo(f"{{outside}}/fifo"),
    "read": lambda: open(f"{{outside}}/file").read(),
    "list": lambda: os.listdir(outside),
    "read environments": lambda: open("/proc/self/environ").read(),
    "tcp": lambda: socket.create_connection(("127.0.0.1", port)).close(),
    "udp": udp,
    "unix socket": unix_socket,
    "socket pair": lambda: socket.socketpair(),
    "names": lambda: socket.getaddrinfo("localhost", 80),
    "fork": fork,
    "fork twice": fork_twice,
    "os.system": exec_in_fork,
    "subprocess": lambda: subprocess.run(["true"], check=True),
    "posix_spawn": lambda: os.waitpid(os.posix_spawnp("true", ["true"], {{}}), 0),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "signal by fcntl": own_signal_by_fcntl,
    "signal own group": lambda: os.killpg(0, 0),
    "memory file": lambda: os.close(os.memfd_create("x")),
    "ptrace": lambda: call("ptrace", 0x4206, os.getppid(), 0, 0),  # PTRACE_SEIZE
    "limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 19),
    "session": lambda: call("prctl", 4, 1, 0, 0, 0),  # PR_SET_DUMPABLE
}}


def f(left_out=()):
    done = []
    for name, attempt in attempts.items():
        if name not in left_out:
            try:
                attempt()
            except (OSError, ValueError):  # setrlimit() says ValueError for EPERM
                continue
            done.append(name)
    return done
"""

NEED_MORE_THAN_A_TEST_HAS = ["ptrace"]
"""What an ordinary process may not do either, by how this machine is set up."""


@pytest.fixture
def outside(tmp_path):
    """A folder with files, a TCP and a UDP port and a Unix socket: what an attempt would reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("file", "file2", "file4", "victim"):
        (folder / name).write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        server.settimeout(0.2)
        path = os.path.relpath(tmp_path / "socket") if len(str(tmp_path)) > 80 else str(tmp_path / "socket")
        unix.bind(path)
        unix.listen()
        code = ATTEMPTS.format(outside=str(folder), port=server.getsockname()[1], unix=path)
        yield folder, code, server


@linux_only
def test_no_way_out_is_open(outside):
    folder, code, server = outside
    before = {path.name: (path.read_text(), path.stat().st_mode, path.stat().st_mtime) for path in folder.iterdir()}
    outcome = run(code, "done = f()\nassert done == [], done")
    assert outcome.passed, outcome.reason
    assert {
        path.name: (path.read_text(), path.stat().st_mode, path.stat().st_mtime) for path in folder.iterdir()
    } == before
    assert not Path("/dev/shm", folder.name).exists()
    with pytest.raises(TimeoutError):
        server.accept()


@linux_only
def test_every_way_out_is_open_without_the_sandbox(outside, tmp_path):
    folder, code, _ = outside
    inner = tmp_path / "inner"
    inner.mkdir()
    program = f"{code}\nimport json\nprint(json.dumps(f({NEED_MORE_THAN_A_TEST_HAS})))"
    everything = ATTEMPTS.count('    "')
    try:
        done = subprocess.run([sys.executable, "-c", program], cwd=inner, capture_output=True, text=True, check=True)
    finally:
        Path("/dev/shm", folder.name).unlink(missing_ok=True)
    opened = json.loads(done.stdout)
    assert len(opened) == everything - len(NEED_MORE_THAN_A_TEST_HAS), opened


# Hostile code: using things up


@linux_only
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass",
            "killed: more than 1 s of processor time",
        ),
        ("kept = bytearray(4 << 30)\ndef f(x):\n    return 2", "MemoryError"),
        ("def f(x):\n    return f(x)", "RecursionError"),
        ("def f(x):\n    return 'x' * (5 << 20)", "too large"),
        ("import os\nwhile True:\n    os.fork()", "PermissionError"),
        (
            "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=[60]).start()",
            "RuntimeError",
        ),
        ("with open('big', 'wb') as file:\n    file.write(bytes(9 << 20))", "OSError"),
        ("while True:\n    print('x' * 100_000)", "processor time"),
        (
            "import time\nfor number in range(5):\n    with open(str(number), 'wb') as one:\n"
            "        one.write(bytes(7 << 20))\ntime.sleep(60)",
            "killed: more than 16 MiB of files",
        ),
        ("open_files = [open(str(number), 'w') for number in range(100)]", "OSError"),
    ],
)
def test_what_code_uses_up_is_bounded(code, reason):
    outcome = run_tests(Job(code=code, tests=TESTS, under_test=("f",)), Limits(cpu_s=1, wall_s=60, folder_mib=16))
    assert not outcome.passed
    assert reason in outcome.reason


@linux_only
def test_code_that_waits_is_stopped():
    began = time.monotonic()
    outcome = run_tests(Job(code="import time\ntime.sleep(60)", tests=TESTS), Limits(wall_s=1))
    assert outcome == sandbox.Outcome(False, "killed: more than 1 s")
    assert time.monotonic() - began < 30


@linux_only
def test_endless_tests_are_stopped_too():
    outcome = run_tests(Job(code=RIGHT, tests="while True:\n    pass"), Limits(cpu_s=1, wall_s=60))
    assert outcome == sandbox.Outcome(False, "the tests ended their process")


# Nothing is left


@linux_only
@pytest.mark.parametrize("code", [RIGHT, "import time\ntime.sleep(60)", "import os\nos._exit(0)"])
def test_no_process_file_or_descriptor_is_left(code, tmp_path, monkeypatch):
    started = []
    start = sandbox._start
    monkeypatch.setattr(sandbox, "_start", lambda *a, **more: started.append(start(*a, **more)) or started[-1])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = os.listdir("/proc/self/fd")
    run_tests(Job(code=f"open('file', 'w').close()\n{code}", tests=TESTS), Limits(wall_s=1))
    assert [process.returncode is not None for process in started] == [True, True]
    assert not any(Path(f"/proc/{process.pid}").exists() for process in started)
    assert list(tmp_path.iterdir()) == []
    assert os.listdir("/proc/self/fd") == descriptors


@linux_only
def test_the_processes_die_with_a_killed_parent(tmp_path):
    program = (
        "import os, sys\nfrom slipstream.bench.quality import sandbox\nstart = sandbox._start\n"
        "def say(*a, **more):\n    one = start(*a, **more)\n    print(one.pid, flush=True)\n    return one\n"
        "sandbox._start = say\n"
        "sandbox.run_tests(sandbox.Job(code='import time\\ntime.sleep(60)', tests='f'), sandbox.Limits(wall_s=60))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        time.sleep(1.0)  # until both are confined, and so have asked for it
        assert all(map(_runs, pids))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, pids))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@linux_only
def test_the_code_sees_no_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("TOKEN", "secret")
    code = "import os\ndef f(x):\n    return set(os.environ) <= {'PYTHONHASHSEED', 'LC_CTYPE'}"
    assert run(code, "assert f(1)").passed


# Where it is not available


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("sys.platform", "darwin"), "Landlock and seccomp, which only Linux has; this is darwin"),
        (("_landlock_version", lambda: -1), "Landlock, which this kernel or container does not offer"),
        (("MACHINES", {"pdp11": (0, 0)}), "its list of system calls for"),
    ],
)
def test_code_is_refused_where_a_part_is_missing(monkeypatch, change, named):
    monkeypatch.setattr(f"{kernel.__name__}.{change[0]}", change[1])
    monkeypatch.setattr(sandbox, "_start", lambda *a, **more: pytest.fail("code was started"))
    with pytest.raises(InputError, match=named):
        run_tests(Job(code=RIGHT, tests=TESTS))


@linux_only
@pytest.mark.parametrize("left_out", ["_restrict_files", "_filter_syscalls"])
def test_a_part_that_does_not_take_is_noticed(left_out):
    """A planted fault: the kernel says yes and does nothing. The code must not run."""
    here = Path(kernel.__file__).resolve().parent.parent
    program = (
        f"import sys; sys.path.insert(0, {str(here)!r}); from confined import kernel\n"
        f"kernel.{left_out} = lambda *a: None\n"
        "try:\n    kernel.confine(folder=None, cpu_s=5, memory_bytes=1 << 30, file_bytes=1, num_files=64)\n"
        "except kernel.RefusedError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "this one took the rules and does not" in done.stdout


def test_the_numbers_of_system_calls_are_those_of_the_kernel_headers():
    tables = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))
    if not all(path.is_file() for path in tables):
        pytest.skip("the kernel's headers are not installed")
    named = {**syscalls.NUMBERS, "clone": syscalls.CLONE, "clone3": syscalls.CLONE3, "fcntl": syscalls.FCNTL}
    for column, path in enumerate(tables):
        numbers = {}
        for line in path.read_text().splitlines():
            match line.replace("__NR3264_", "__NR_").split():
                case ["#define", name, number, *_] if name.startswith("__NR_") and number.isdigit():
                    numbers[name.removeprefix("__NR_")] = int(number)
        numbers.setdefault("newfstatat", numbers.get("fstatat"))
        assert {name: row[column] for name, row in named.items()} == {name: numbers.get(name) for name in named}
