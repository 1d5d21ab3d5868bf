"""How PyTorch's threads wait: said before PyTorch is imported, never against the user, and warned of where too late."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import slipstream
from slipstream.errors import InputError
from slipstream.runtime import threads
from slipstream.runtime.threads import WAITING, check_waiting, settle_waiting

NAMES = ("OMP_WAIT_POLICY", *WAITING)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of threads, and a process that has not warned yet."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in NAMES})
    threads._warn_of_spinning.cache_clear()


def python(*lines: str, **environment: str) -> str:
    """What a new process prints."""
    command = [sys.executable, "-c", "\n".join(lines)]
    whole = {**os.environ, **environment}
    return subprocess.run(command, env=whole, capture_output=True, text=True, check=True).stdout.strip()


SAY = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def test_importing_slipstream_says_how_to_wait_before_torch_is_there() -> None:
    assert python("import slipstream, sys", "assert 'torch' not in sys.modules", SAY) == "20000"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_says_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    os.environ[name] = "PASSIVE"
    settle_waiting()
    assert {one: os.environ[one] for one in NAMES if one in os.environ} == {name: "PASSIVE"}


def test_once_torch_is_imported_nothing_is_said_that_it_would_not_hear() -> None:
    settle_waiting()
    assert not set(NAMES) & set(os.environ)


def target(device: str = "cpu") -> Any:
    return SimpleNamespace(device=torch.device(device))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_that_spin_without_limit_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        check_waiting(target())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Import slipstream first, or set GOMP_SPINCOUNT=20000 before Python starts" in record.getMessage()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("device", "environment"), [("cuda", {}), ("cpu", {"GOMP_SPINCOUNT": "5"})])
def test_no_warning_where_it_makes_no_difference(device: str, environment: dict[str, str], caplog) -> None:
    os.environ.update(environment)
    check_waiting(target(device))
    assert not caplog.records


def test_one_thread_waits_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    check_waiting(target())
    assert not caplog.records


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("asked", "threads"), [(None, 3), (2, 2), ("auto", 1)])
def test_a_library_user_has_the_commands_choice_for_the_asking(asked: Any, threads: int, monkeypatch) -> None:
    monkeypatch.delitem(os.environ, "OMP_NUM_THREADS", raising=False)
    slipstream.load("tiny", "plain", threads=asked)
    assert torch.get_num_threads() == threads


def test_no_threads_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="threads is 0; it must be at least 1"):
        slipstream.load("absent", "plain", threads=0)
