"""A peer's process is asked in lines; however it fails, that is one line and never a wait without end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.bench.processes.process import PeerProcess, environment_of_others
from slipstream.errors import InputError, SlipstreamError
from slipstream.runtime.threads import WAITING

ECHO = """
import json, sys
for number, line in enumerate(sys.stdin):
    print(json.dumps({"software": "echo 1"} if number == 0 else {"heard": json.loads(line)}), flush=True)
"""
ONCE = 'import sys; sys.stdin.readline(); print(\'{"software": "once"}\', flush=True); sys.stdin.readline(); '


@pytest.fixture
def start(tmp_path: Path):
    started: list[PeerProcess] = []

    def make(script: str) -> PeerProcess:
        (tmp_path / "peer.py").write_text(script)
        started.append(PeerProcess("fake", [sys.executable, str(tmp_path / "peer.py")], {"threads": 1}))
        return started[-1]

    yield make
    for one in started:
        one.close()


Start = Callable[[str], PeerProcess]


def test_it_loads_once_and_answers_in_turn(start: Start) -> None:
    process = start(ECHO)
    assert process.software == "echo 1"
    assert process.ask({"prompt_ids": [1, 2]}) == {"heard": {"prompt_ids": [1, 2]}}
    assert process.ask({"text": "ä\n"}) == {"heard": {"text": "ä\n"}}


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the processor time of a process is read from /proc")
def test_it_takes_no_processor_time_between_requests(start: Start) -> None:
    process = start(ECHO)
    process.ask({})

    def spent() -> list[str]:
        return Path(f"/proc/{process.pid}/stat").read_text().split()[13:15]

    time.sleep(0.1)
    before = spent()
    time.sleep(0.3)
    assert spent() == before


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('print(\'{"error": "no such file"}\')', "fake: no such file"),
        ("raise ImportError('No module named none')", "ended with exit code 1: ImportError: No module named none"),
        ("import os; os._exit(0)", "ended with exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("print('hello')", "no JSON"),
    ],
)
def test_what_cannot_load_is_one_line(start: Start, script: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        start(script)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("sys.stderr.write('no memory left\\n'); sys.exit(3)", "ended with exit code 3: no memory left"),
        ('print(\'{"error": "too long"}\', flush=True)', "fake: too long"),
    ],
)
def test_what_fails_while_it_answers_is_one_line(start: Start, rest: str, says: str) -> None:
    process = start(ONCE + rest)
    with pytest.raises(SlipstreamError, match=says) as caught:
        process.ask({})
    assert not isinstance(caught.value, InputError)


def test_one_that_was_killed_between_requests_is_one_line(start: Start) -> None:
    process = start(ECHO)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(SlipstreamError, match="was ended by SIGKILL"):
        process.ask({})


def test_it_ends_by_itself_when_it_is_closed(start: Start) -> None:
    process = start(ECHO)
    began = time.perf_counter()
    process.close()
    assert time.perf_counter() - began < 4, "it had to be killed"
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_busy_one_is_ended_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.bench.processes.process._PATIENCE_S", 0.1)
    busy = start(ONCE.removesuffix("sys.stdin.readline(); ") + "import time; time.sleep(60)")
    busy.close()
    assert not Path(f"/proc/{busy.pid}").exists()


def test_a_command_that_is_none_is_one_line() -> None:
    with pytest.raises(InputError, match="fake: cannot run /no/python: No such file"):
        PeerProcess("fake", ["/no/python"], {})


def test_other_software_waits_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", WAITING["GOMP_SPINCOUNT"])
    monkeypatch.setenv("KMP_BLOCKTIME", "200")  # the user's own
    found = environment_of_others()
    assert "GOMP_SPINCOUNT" not in found
    assert found["KMP_BLOCKTIME"] == "200"
    assert found["PATH"] == os.environ["PATH"]
