"""Tasks from data sets on the Hugging Face hub: a few by name, any other by its place and columns.

Rows come in the data set's own order, the first ones first, and are written as a question file in the run's folder. So
a resumed run asks the same without the hub, and `slipstream bench score` finds the references.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from slipstream.errors import InputError, unknown_choice
from slipstream.prompts import Prompt

QUESTIONS_FOLDER = "questions"
"""Where a run keeps the questions that came from the hub."""
DEFAULT_ROWS = 80
"""Questions a data set if no number is asked for: as many as EAGLE's question files hold."""
INSTALL = "pip install datasets"
_FORM = "NAME=OWNER/DATASET[/CONFIG][@REVISION]:SPLIT:COLUMN[:REFERENCE_COLUMN]"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubTask:
    """A data set, and how its rows become questions."""

    name: str
    path: str
    """`OWNER/DATASET`, or a folder of data files, which begins with "/" or "."."""
    config: str | None = None
    revision: str | None = None
    split: str
    column: str
    """What is asked."""
    reference: str | None = None
    """The column of right answers: a text or a list of texts."""
    template: str = "{}"
    """What the user says; {} stands for the column."""
    category: str = ""
    """What `bench score` compares answers by (`slipstream.bench.quality.scorers`)."""
    extra: tuple[str, ...] = ()
    """Columns that go into the question file as they are: tests of code."""

    @property
    def described(self) -> str:
        """The task with its place, to be shown and kept in the run's record: of a folder, its name alone."""
        path = Path(self.path).name if self.path.startswith(("/", ".")) else self.path
        place = path + (f"/{self.config}" if self.config else "") + (f"@{self.revision}" if self.revision else "")
        return f"{self.name} ({place}, {self.split})"


PRESETS: Mapping[str, HubTask] = {
    task.name: task
    for task in (
        HubTask(
            name="xsum",
            path="EdinburghNLP/xsum",
            revision="refs/convert/parquet",  # the hub's own copy; the data set itself may be a script
            split="test",
            column="document",
            reference="summary",
            template="Summarize in one sentence: {}",
            category="summarization",
        ),
        HubTask(
            name="cnn_dm",
            path="abisee/cnn_dailymail",
            config="3.0.0",
            split="test",
            column="article",
            reference="highlights",
            template="Summarize: {}",
            category="summarization",
        ),
        HubTask(
            name="gsm8k",
            path="openai/gsm8k",
            config="main",
            split="test",
            column="question",
            reference="answer",
            category="math",
        ),
        HubTask(
            name="humaneval",
            path="openai/openai_humaneval",
            split="test",
            column="prompt",
            template="Complete this function.\n\n```python\n{}\n```",
            category="coding",
            extra=("test", "entry_point", "canonical_solution"),
        ),
        HubTask(
            name="nq",
            path="google-research-datasets/nq_open",
            split="validation",
            column="question",
            reference="answer",
            category="qa",
        ),
    )
}
"""Data sets that go by a name."""


def parse_task(text: str) -> HubTask:
    """The data set that the user names: a preset, or one in the form `_FORM`. Raises InputError for anything else.

    CONFIG is what the hub calls a subset. A folder of data files, from "/" or ".", stands for OWNER/DATASET.
    """
    name, equals, place = text.partition("=")
    if not equals:
        if text not in PRESETS:
            raise unknown_choice("data set", text, [*PRESETS, _FORM])
        return PRESETS[text]
    where, *columns = place.split(":")
    if not name or "/" in name or not where or len(columns) not in (2, 3) or not all(columns):
        raise InputError(f"--dataset {text!r} is not of the form {_FORM}")
    path, _, revision = where.partition("@")
    config = ""
    if not path.startswith(("/", ".")):
        owner, dataset, *rest = [*path.split("/", 2), ""]
        if not (owner and dataset):
            raise InputError(f"--dataset {text!r} is not of the form {_FORM}; a folder begins with '/' or '.'")
        path, config = f"{owner}/{dataset}", rest[0]
    return HubTask(
        name=name,
        path=path,
        config=config or None,
        revision=revision or None,
        split=columns[0],
        column=columns[1],
        reference=columns[2] if len(columns) == len(("split", "column", "reference")) else None,
    )


def parse_tasks(texts: Sequence[str], taken: Sequence[str] = ()) -> list[HubTask]:
    """All data sets that the user names. Raises InputError for a name that stands twice or is `taken` already."""
    found = [parse_task(text) for text in texts]
    names = [*taken, *(one.name for one in found)]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two tasks are called {doubled!r}; give the data set another name: --dataset {_FORM}")
    return found


def fetch_questions(task: HubTask, num_rows: int | None = None) -> str:
    """The first rows (None: `DEFAULT_ROWS`) as the text of a question file; the question id is the row's number.

    Rows without a text are left out. Raises InputError where `datasets` is missing, the data set cannot be read, or it
    lacks a column or any question.
    """
    if num_rows is not None and num_rows < 1:
        raise InputError(f"prompts_per_task is {num_rows}; it must be at least 1")
    lines = []
    for number, row in enumerate(_rows(task, num_rows or DEFAULT_ROWS)):
        if isinstance(asked := row[task.column], str) and asked.strip():
            lines.append(json.dumps(_question(task, number, row), ensure_ascii=False) + "\n")
    if not lines:
        raise InputError(f"{task.described}: the first rows hold no text in column {task.column!r}")
    return "".join(lines)


def _question(task: HubTask, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the question file."""
    question = {"question_id": number, "category": task.category, "turns": [task.template.format(row[task.column])]}
    if task.reference is not None:
        question["reference"] = row[task.reference]
    return question | {name: row[name] for name in task.extra}


def _rows(task: HubTask, limit: int) -> Iterator[Mapping[str, Any]]:
    """The first rows, streamed: of a large data set only its beginning is fetched."""
    load_dataset = _load_dataset()
    try:
        rows = load_dataset(task.path, task.config, split=task.split, revision=task.revision, streaming=True)
        first = list(islice(rows, limit))
    except Exception as error:  # what `datasets`, the hub's client and the file's reader raise has no common base
        reason = shorten(str(error), 300) or type(error).__name__
        hint = ""
        if "scripts are no longer supported" in reason:
            hint = "; the hub keeps a copy without the script: OWNER/DATASET@refs/convert/parquet"
        raise InputError(f"cannot read the data set {task.described}: {reason}{hint}") from error
    needed = [task.column, *([task.reference] if task.reference else []), *task.extra]
    for row in first:
        if missing := next((name for name in needed if name not in row), None):
            raise InputError(f"{task.described} has no column {missing!r}; it has {', '.join(map(str, row))}")
    yield from first


def _load_dataset() -> Any:
    try:
        return import_module("datasets").load_dataset
    except ImportError as error:
        raise InputError(f"data sets of the hub need the datasets package: {INSTALL}") from error


def prompts_of(task: HubTask, questions: str) -> list[Prompt]:
    """The prompts in the text of a task's question file."""
    lines = map(json.loads, questions.removesuffix("\n").split("\n"))
    return [
        Prompt(id=one["question_id"], kind=task.name, turns=tuple(one["turns"]), category=one["category"])
        for one in lines
    ]


def kept_questions(folder: Path, task: HubTask) -> str | None:
    """The text of the question file that the run in `folder` keeps; None if it has none."""
    with suppress(FileNotFoundError):
        return _file(folder, task).read_text(encoding="utf-8")
    return None


def keep_questions(folder: Path, task: HubTask, questions: str) -> None:
    """Write the question file into the run's folder, all at once."""
    path = _file(folder, task)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(questions, encoding="utf-8")
    temporary.replace(path)


def _file(folder: Path, task: HubTask) -> Path:
    return folder / QUESTIONS_FOLDER / f"{task.name}.jsonl"
