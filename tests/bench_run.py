"""Carrying a benchmark run out, for the tests of the runner and of what is made of its journal."""

from __future__ import annotations

from collections.abc import Callable

from slipstream.bench.entrants import ExactEntrants, load_entrants
from slipstream.bench.runner import BenchRun


def carry_out(run: BenchRun, progress: Callable[[object], None] | None = None) -> None:
    """All that is left of a run."""
    entrants = load_entrants(run.plain, run.settings)
    run.run(entrants, ExactEntrants(lambda: run.plain, run.settings), progress)
