"""Steps that share the time there is: results are kept as they come, and a step that fails or hangs stops no other.

`work` runs steps in this process, and `drive` has it done by another, which it stops where a step exceeds its time and
starts anew for the steps that are left. Both write one record. A step is given its seconds and yields, as often as it
likes, what it has found so far; what is left of its time goes to those after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slipstream.errors import first_line
from slipstream.records.run_files import write_json

Step = Callable[[float], Iterator[Mapping[str, Any]]]
"""Seconds that it may take -> what it has found so far, again and again."""
ENDS = ("done", "late", "failed", "stopped")
"""How a step may end: by itself; beyond its time, so that nothing after its last finding was asked for; by an error;
with its process."""
GRACE_S = 10.0
"""What a step may take beyond its time before its process is stopped."""
_POLL_S = 0.2


class Journal:
    """The record of the steps in its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.steps: dict[str, dict[str, Any]] = self.record.setdefault("steps", {})

    def describe(self, provenance: Mapping[str, Any]) -> None:
        """Say what the steps ran on, unless that is said already."""
        self.record = {"provenance": provenance, **self.record}

    def begin(self, name: str, allowed_s: float) -> None:
        """A step begins."""
        self.steps[name] = {"begun": round(time.time(), 1), "allowed_s": round(allowed_s, 1), "found": {}}
        self.write()

    def keep(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep what a step has found so far."""
        self.steps[name]["found"] = found
        self.write()

    def end(self, name: str, how: str, error: str | None = None) -> None:
        """A step has ended."""
        step = self.steps.setdefault(name, {"begun": round(time.time(), 1), "found": {}})
        step |= {"seconds": round(time.time() - step["begun"], 1), "ended": how}
        if error is not None:
            step["error"] = error
        self.write()

    @property
    def running(self) -> str | None:
        """The step that has begun and not ended."""
        return next((name for name, one in self.steps.items() if "ended" not in one), None)

    def write(self) -> None:
        """At once, so that a reader never finds half of it."""
        write_json(self.path, self.record)


def work(steps: Mapping[str, Step], shares: Mapping[str, float], journal: Journal, until: float) -> int:
    """Run steps in turn up to the first that fails; returns how many failed.

    shares: of the time, relative to each other. until: when all must be over, by `time.time`.
    """
    left = list(steps)
    for name in steps:
        allowed = (until - time.time()) * shares[name] / sum(shares[one] for one in left)
        left.remove(name)
        print(f"==> {name}: {allowed:.0f} s", flush=True)
        journal.begin(name, allowed)
        try:
            journal.end(name, _run(steps[name], name, allowed, journal))
        except Exception as error:  # whatever it is: the other steps have yet to run, in a process of their own
            traceback.print_exc()
            journal.end(name, "failed", f"{type(error).__name__}: {first_line(error)}")
            return 1
    return 0


def _run(step: Step, name: str, allowed: float, journal: Journal) -> str:
    ends = time.time() + allowed
    for found in step(allowed):
        journal.keep(name, found)
        if time.time() > ends:
            return "late"
    return "done"


def drive(command: Callable[[Sequence[str]], Sequence[str]], names: Sequence[str], path: Path, until: float) -> int:
    """Have steps done by other processes, one after the other; returns how many did not end well.

    command: runs the steps that it is given by `work`. path: of the record.
    """
    left = list(names)
    while left and time.time() < until:
        process = subprocess.Popen(command(left), start_new_session=True)
        try:
            _watch(process, path, until)
        finally:
            _stop(process)
        journal = Journal(path)
        if (name := journal.running) is not None:
            journal.end(name, "stopped")
        elif left[0] not in journal.steps:
            journal.end(left[0], "stopped", f"its process ended before it began, with code {process.returncode}")
        left = [one for one in left if one not in journal.steps]
    journal = Journal(path)
    for name in left:
        journal.end(name, "stopped", "no time was left")
    return sum(journal.steps[name]["ended"] in ("failed", "stopped") for name in names)


def _watch(process: subprocess.Popen[bytes], path: Path, until: float) -> None:
    """Wait until the process ends or must be stopped."""
    while process.poll() is None and time.time() < until:
        time.sleep(_POLL_S)
        journal = Journal(path)
        step = journal.steps.get(journal.running or "")
        if step is not None and time.time() > step["begun"] + step["allowed_s"] + GRACE_S:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
