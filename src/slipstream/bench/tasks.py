"""Which questions a benchmark asks: the six tasks of the EAGLE-2 paper, a user's own files, or the shipped prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from slipstream.errors import InputError, unknown_choice
from slipstream.prompts import Prompt, load_prompts, read_questions

TASKS: Mapping[str, str] = {
    "mt_bench": "MT-bench",
    "humaneval": "HumanEval",
    "gsm8k": "GSM8K",
    "alpaca": "Alpaca",
    "cnn_dm": "CNN/DM",
    "nq": "Natural Questions",
}
"""The tasks of EAGLE-2 (arXiv 2406.16858, Table 1) in its order, by the name of their file, and how they are called."""

_EAGLE_FOLDERS = {"cnn_dm": "sum", "nq": "qa"}
"""What EAGLE's repository calls a task's folder, where it is not the task's name."""


def load_tasks(
    data: Path | None, names: Sequence[str] | None = None, prompts_per_task: int | None = None
) -> dict[str, list[Prompt]]:
    """The prompts of each task, tasks in the order of `TASKS`, others after them by name.

    data: None for the shipped prompts; a question file, which is one task; or a folder of `TASK.jsonl` files, or of
    `TASK/question.jsonl` as EAGLE has them. names: only these tasks. prompts_per_task: only the first ones.
    Raises InputError for a task that is not there or a file that cannot be read.
    """
    found: Mapping[str, list[Prompt] | Path] = _shipped() if data is None else question_files(data)
    if names is not None:
        for name in names:
            if name not in found:
                raise unknown_choice("task", name, found)
        found = {name: found[name] for name in found if name in names}
    return {
        name: (read_questions(where, name) if isinstance(where, Path) else where)[:prompts_per_task]
        for name, where in found.items()
    }


def in_turns(tasks: Mapping[str, Sequence[Prompt]]) -> Iterator[Prompt]:
    """All prompts, one of each task after the other, so that a run that is cut short is even over the tasks."""
    for row in zip_longest(*tasks.values()):
        yield from (prompt for prompt in row if prompt is not None)


def questions_hash(tasks: Mapping[str, Sequence[Prompt]]) -> str:
    """Names the questions of a run: 16 hexadecimal digits."""
    said = {name: [[one.id, one.turns] for one in prompts] for name, prompts in tasks.items()}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _shipped() -> Mapping[str, list[Prompt]]:
    found: dict[str, list[Prompt]] = {}
    for prompt in load_prompts():
        found.setdefault(prompt.kind, []).append(prompt)
    return found


def question_files(data: Path) -> Mapping[str, Path]:
    """Task: its question file, for a file or a folder of them."""
    if data.is_file():
        return {data.stem: data}
    if not data.is_dir():
        raise InputError(f"there is no file or folder {data}; give a question file or a folder of them")
    found: dict[str, Path] = {}
    for name in TASKS:
        places = (data / f"{name}.jsonl", data / _EAGLE_FOLDERS.get(name, name) / "question.jsonl")
        if place := next((place for place in places if place.is_file()), None):
            found[name] = place
    found |= {path.stem: path for path in sorted(data.glob("*.jsonl")) if path.stem not in found}
    if not found:
        raise InputError(
            f"{data} holds no question file; it needs TASK.jsonl, or TASK/question.jsonl as EAGLE ships them"
        )
    return found
