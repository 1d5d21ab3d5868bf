"""Runs of `slipstream train` on every process that is started, one after the other.

    python tests/training/two_processes.py RUNS

RUNS: a JSON file, a list of `[options, end, how]`: the options of the command; the step after which the run ends, or
null; and whether it is then `stopped`, as by an error in all processes, or its last process `killed`. RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT are set as launchers set them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from slipstream.cli.app import run
from slipstream.drafting.recipe import Report
from slipstream.training.run import HeadRun


class StoppedError(Exception):
    """The run is to end here."""


def ending(at: int | None, how: str) -> object:
    """Every run ends after step `at`."""
    whole = HeadRun.steps

    def steps(self: HeadRun) -> Iterator[Report]:
        for report in whole(self):
            yield report
            if report.step == at:
                if how == "stopped":
                    raise StoppedError
                if self.accelerator.process_index == self.accelerator.num_processes - 1:
                    os.kill(os.getpid(), signal.SIGKILL)

    return patch.object(HeadRun, "steps", steps)


def train(options: list[str], end: int | None, how: str) -> int:
    """One run; its exit code."""
    with ending(end, how):
        try:
            return run(["train", *options])
        except StoppedError:
            return 0


if __name__ == "__main__":
    codes = [train(*one) for one in json.loads(Path(sys.argv[1]).read_text())]
    sys.exit(max(codes))
