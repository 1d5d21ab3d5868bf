"""What the lines of a question file hold besides the questions: references and tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slipstream.bench.tasks import question_files
from slipstream.errors import InputError
from slipstream.prompts import read_questions

REFERENCE_FIELDS = ("reference", "references", "answers", "answer")
"""Where references stand, in this order; a text or a list of texts."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a question file."""

    id: int | str
    turns: tuple[str, ...]
    category: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The whole line."""

    def references(self, turn: int) -> list[str]:
        """Texts that are right answers to a turn. With several turns the list has one for each, else all are for it."""
        found: Any = next((self.fields[name] for name in REFERENCE_FIELDS if self.fields.get(name)), [])
        texts = [found] if isinstance(found, str) else [text for text in found if isinstance(text, str)]
        if len(self.turns) == 1:
            return texts
        return texts[turn : turn + 1] if len(texts) == len(self.turns) else []

    @property
    def prompt(self) -> str:
        """What was asked first."""
        return self.turns[0]


def load_records(data: Path) -> dict[str, dict[int | str, Record]]:
    """By task and question id. data: a question file, or a folder of them as `bench run --data` takes it.

    Raises InputError for what cannot be read.
    """
    return {task: _read(path, task) for task, path in question_files(data).items()}


def _read(path: Path, task: str) -> dict[int | str, Record]:
    questions = read_questions(path, task)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = zip(questions, lines, strict=True)
    return {one.id: Record(one.id, one.turns, one.category, line) for one, line in pairs}


def no_references(task: str) -> InputError:
    """The error for a file that gives nothing to score by."""
    return InputError(
        f"{task}: the questions carry neither references ({', '.join(REFERENCE_FIELDS)}) nor tests (test with "
        "entry_point, test_list, tests); there is nothing to score by. Add one of these fields to the file."
    )
