"""Carrying a benchmark run out, for the tests of the runner and of what is made of its journal."""

from __future__ import annotations

from slipstream.bench.entrants import ExactEntrants, load_entrants
from slipstream.bench.runner import BenchRun, Watcher


def carry_out(run: BenchRun, watcher: Watcher | None = None) -> None:
    """All that is left of a run."""
    entrants = load_entrants(run.plain, run.settings)
    run.run(entrants, ExactEntrants(lambda: run.plain, run.settings), watcher)
