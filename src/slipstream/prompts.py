"""Prompts: the few dozen that ship with the package, and question files in the layout of EAGLE and Spec-Bench.

One JSON object a line with `question_id`, `turns` and, if there is one, `category`; one reader serves the shipped file
and a user's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from slipstream.errors import InputError

KINDS = ("chat", "code", "maths", "instructions", "questions", "articles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One conversation to be had with the target."""

    id: int | str
    kind: str
    """The task that it belongs to: one of `KINDS`, or the name of its file."""
    turns: tuple[str, ...]
    """What the user says, turn by turn; the answers come from the target."""
    category: str = ""
    """The file's own word for it."""


def load_prompts() -> list[Prompt]:
    """All shipped prompts. Kinds take turns, so any first few are mixed."""
    text = resources.files("slipstream").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return [_parse(line, None, f"shipped prompt {number}") for number, line in enumerate(text.splitlines(), 1)]


def read_questions(path: Path, task: str) -> list[Prompt]:
    """All prompts of a question file. Raises InputError that names the line for anything that is no question."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    found = [_parse(line, task, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f'{path} holds no question; a line is {{"question_id": 1, "turns": ["..."]}}')
    seen: set[int | str] = set()
    for one in found:
        if one.id in seen:
            raise InputError(f"{path}: question_id {one.id!r} stands twice; number the questions differently")
        seen.add(one.id)
    return found


def _parse(line: str, task: str | None, place: str) -> Prompt:
    """task: what the prompt belongs to; None: its category."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not JSON ({error})") from error
    match record:
        case {"question_id": int() | str() as number, "turns": [str(), *_] as turns} if all(
            isinstance(turn, str) and turn.strip() for turn in turns
        ):
            category = str(record.get("category") or "")
            return Prompt(id=number, kind=task or category, turns=tuple(turns), category=category)
    raise InputError(f'{place} is no question; it needs "question_id" and "turns", a list of texts that are not empty')
