"""The skip sets that ship with the demo target: one a task, found by the modelled objective on the shipped prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import slipstream
from slipstream.search.prompts import task_prompts
from slipstream.search.search import SkipSearch, Trial
from slipstream.search.settings import SearchSettings
from slipstream.skipping.library import DEFAULT

DEMO_TASKS = (DEFAULT, "code", "summarisation")
SETTINGS = SearchSettings(trials=200)


def find_demo_sets(
    target: Path,
    work: Path,
    out: Path,
    *,
    settings: SearchSettings = SETTINGS,
    tasks: Sequence[str] = DEMO_TASKS,
    progress: Callable[[str, Trial], None] = lambda task, trial: None,
) -> None:
    """Write `out`/<task>.json for each task. target: the model's folder; work: where the studies are kept.

    The same call goes on where it was interrupted. Costs are measured, so another machine may find other sets.
    """
    model = slipstream.load(target, "plain", dtype="float32", device="cpu")
    out.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        search = SkipSearch(model, task_prompts(task), settings, work / f"{task}.study", task=task)
        search.prepare()
        for trial in search.trials():
            progress(task, trial)
        search.calibrated().save(out / f"{task}.json")
