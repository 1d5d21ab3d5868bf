"""Whether any method is slower than plain decoding on any task, from the folder of a run.

    python benchmarks/cells.py RUN [--against plain] [--limit 0.97] [--out benchmarks/records/cells-smollm2-bf16.json]

A cell is a method on a task at a temperature. Its speed is its tokens a second over those of plain decoding on the same
turns of the same prompts, each turn answered by both in turn; the interval of 95 % is a bootstrap over turns (scipy,
percentiles). A cell fails if even its upper end lies under the limit. Exit code 1 if one does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from slipstream.records.journal import read_answers
from slipstream.records.record import load_record
from slipstream.records.run_files import JOURNAL_FILE, RECORD_FILE
from slipstream.records.schema import PLAIN

Turn = tuple[Any, int, int]
Times = dict[Turn, tuple[int, float]]
"""Tokens and seconds of each answer."""


def main(arguments: list[str] | None = None) -> int:
    """Print the cells, write them, and say by the exit code whether all hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--against", default=PLAIN, metavar="ENTRANT")
    parser.add_argument("--limit", type=float, default=0.97)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    cells = [cell | {"holds": cell["high"] >= options.limit} for cell in measured(options.run, options.against)]
    for cell in cells:
        mark = "" if cell["holds"] else "  under the limit"
        print(
            f"T={cell['temperature']:g} {cell['entrant']:20} {cell['task']:10} "
            f"{cell['speed']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]{mark}"
        )
    failed = sum(not cell["holds"] for cell in cells)
    print(f"{failed} of {len(cells)} cells are under {options.limit} of {options.against}")
    if options.out is not None:
        run = load_record(options.run / RECORD_FILE).run
        names = ("command", "date", "commit", "versions", "hardware", "threads", "dtype", "model", "target")
        record = {
            **{name: getattr(run, name) for name in names},
            "against": options.against,
            "limit": options.limit,
            "failed": failed,
            "cells": cells,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(failed > 0)


def measured(run: Path, against: str) -> Iterator[dict[str, Any]]:
    """The cells of a run's methods of ours, without `against` itself."""
    ours_alone = {one.name for one in load_record(run / RECORD_FILE).run.entrants if one.kind == "ours"} - {against}
    times: dict[tuple[float, str, str], Times] = defaultdict(dict)
    for one in read_answers(run / JOURNAL_FILE):
        turn = one.prompt_id, one.turn, one.sample
        times[one.temperature, one.entrant, one.task][turn] = len(one.token_ids), statistics.median(one.seconds)
    for (temperature, entrant, task), ours in sorted(times.items()):
        if entrant in ours_alone:
            theirs = times[temperature, against, task]
            low, speed, high = interval(ours, theirs)
            figures = {"speed": round(speed, 4), "low": round(low, 4), "high": round(high, 4)}
            yield {"entrant": entrant, "temperature": temperature, "task": task, "turns": len(theirs), **figures}


def interval(ours: Times, theirs: Times) -> tuple[float, float, float]:
    """(lower end, speed, upper end) of our tokens a second over theirs, on the turns that both answered."""
    turns = [turn for turn in theirs if turn in ours]
    table = [np.array([times[turn][place] for turn in turns]) for times in (ours, theirs) for place in (0, 1)]

    def speed(tokens: Any, seconds: Any, other_tokens: Any, other_seconds: Any, axis: int = -1) -> Any:
        rate = tokens.sum(axis) / seconds.sum(axis)
        return rate / (other_tokens.sum(axis) / other_seconds.sum(axis))

    if len(turns) < 2:
        return (found := float(speed(*table))), found, found
    found = bootstrap(table, speed, paired=True, vectorized=True, method="percentile", rng=0).confidence_interval
    return float(found.low), float(speed(*table)), float(found.high)


if __name__ == "__main__":
    sys.exit(main())
