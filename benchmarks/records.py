"""What the scripts here share: the question files, the provenance of a record, methods over one target, tables."""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ablations
import torch
import transformers

import slipstream
from slipstream.bench.comparison import PLAIN, VERDICTS
from slipstream.prompts import Prompt
from slipstream.records.machine import commit, hardware, shown_command
from slipstream.target.target import Target

TASKS = ("mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "nq")
Methods = Mapping[str, tuple[str, Mapping[str, Any]]]
"""A row's name in the tables: the method and its options."""


def missing_task(folder: Path) -> str | None:
    """The first task whose question file is not in the folder."""
    return next((task for task in TASKS if not (folder / f"{task}.jsonl").is_file()), None)


def task_names(text: str) -> list[str]:
    """Names of `TASKS` separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        raise argparse.ArgumentTypeError(f"unknown task {unknown[0]!r}; choose from {', '.join(TASKS)}")
    return names


def read_questions(folder: Path, task: str, count: int) -> list[Prompt]:
    """The first turns of the first `count` questions of a task."""
    lines = (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    questions = [json.loads(line) for line in lines]
    return [Prompt(id=one["question_id"], kind=task, turns=(one["turns"][0],)) for one in questions]


def provenance(target: Target, *, model: str, **settings: Any) -> dict[str, Any]:
    """Command, commit, versions, hardware, model. Ask before the run: a commit made meanwhile is not what ran.

    settings: what else decides the figures (seed, number of prompts and tokens).
    """
    return {
        "command": shown_command(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "slipstream": slipstream.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": hardware(target.device),
        "threads": torch.get_num_threads(),
        "model": Path(model).name if Path(model).is_absolute() else model,
        "target": target.hash,
        "dtype": str(target.dtype).removeprefix("torch."),
        **settings,
    }


def load_methods(
    model: str, methods: Methods, *, dtype: str | None = None, device: str | None = None
) -> dict[str, slipstream.Model]:
    """All methods over one target; plain, the reference of every comparison, is always among them."""
    plain = slipstream.load(model, PLAIN, dtype=dtype, device=device)
    models = {PLAIN: plain}
    for name, (method, options) in methods.items():
        if name != PLAIN:
            models[name] = ablations.load(plain.target.model, method, options, plain.tokenizer)
    return models


class ExactModels:
    """The same methods in float64, loaded when a mismatch first asks for them."""

    def __init__(self, model: str, methods: Methods, *, device: str | None = None) -> None:
        self._model, self._methods, self._device = model, methods, device
        self._loaded: dict[str, slipstream.Model] | None = None

    def __call__(self, name: str) -> slipstream.Model:
        if self._loaded is None:
            self._loaded = load_methods(self._model, self._methods, dtype="float64", device=self._device)
        return self._loaded[name]


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON, a list of numbers on one line."""
    text = re.sub(
        r"\[\n[\s\d.,eE+-]+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", json.dumps(record, indent=1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def table(record: Mapping[str, Any]) -> str:
    """Tau / ratio to plain per task, and how many answers are identical, rounding, faults.

    record: `tasks` {task: rows} and `all` (rows), a row being `Totals.to_dict()`, with `verdicts` null where
    answers are not comparable and a `rule` where there are several; all lists in one order.
    """
    names = [*record["tasks"], "all"]
    header = f"{'T':>3} {'method':29}" + "".join(f"{name:>14}" for name in names) + f"   {'/'.join(VERDICTS)}"
    columns = [*record["tasks"].values(), record["all"]]
    lines = [header]
    for row, totals in enumerate(record["all"]):
        cells = [f"{column[row]['tau']:8.2f} {ratio_to_plain(column[row], column):4.2f}x" for column in columns]
        verdicts = totals["verdicts"]
        counts = "/".join(str(verdicts[name]) for name in VERDICTS) if verdicts else "not compared"
        rule = " (rejection)" if totals.get("rule") == "rejection" else ""
        lines.append(f"{totals['temperature']:3g} {totals['method'] + rule:29}" + "".join(cells) + f"   {counts}")
    return "\n".join(lines)


def ratio_to_plain(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float:
    """Tokens per second of a row over plain decoding's at the same temperature."""
    plain = next(one for one in rows if one["method"] == PLAIN and one["temperature"] == row["temperature"])
    ratio: float = row["tokens_per_second"] / plain["tokens_per_second"]
    return ratio
