"""Two runs of `slipstream train eagle` on every process that a launcher starts: a whole one, and one that is stopped
and resumed.

    torchrun --standalone --nproc_per_node 2 tests/training/two_processes.py OUT STOP_AT OPTION...

OPTION: of the command, all but --out. OUT/whole and OUT/stopped are made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from slipstream.cli.train import app
from slipstream.drafting.recipe import Report
from slipstream.training.run import HeadRun


class StoppedError(Exception):
    """The run is to end here."""


def train(out: Path, options: list[str]) -> None:
    """The command as a user gives it."""
    app(["eagle", "--out", str(out), *options], standalone_mode=False)


def stopping(at: int) -> object:
    """Every run ends with StoppedError after step `at`."""
    whole = HeadRun.steps

    def steps(self: HeadRun) -> Iterator[Report]:
        for report in whole(self):
            yield report
            if report.step == at:
                raise StoppedError

    return patch.object(HeadRun, "steps", steps)


def main(out: Path, stop_at: int, options: list[str]) -> None:
    """All runs, one after the other."""
    train(out / "whole", options)
    try:
        with stopping(stop_at):
            train(out / "stopped", options)
    except StoppedError:
        train(out / "stopped", options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
