"""The prompts that ship with the package: a few dozen of six kinds, written for it.

One JSON object a line with `question_id`, `category` and `turns`, the layout of the question files of EAGLE and
Spec-Bench, so that one reader serves these and a user's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

KINDS = ("chat", "code", "maths", "instructions", "questions", "articles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One conversation to be had with the target."""

    id: int
    kind: str
    """One of `KINDS`."""
    turns: tuple[str, ...]
    """What the user says, turn by turn; the answers come from the target."""


def load_prompts() -> list[Prompt]:
    """All shipped prompts. Kinds take turns, so any first few are mixed."""
    text = resources.files("slipstream.bench").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return [_parse(json.loads(line)) for line in text.splitlines()]


def _parse(record: dict[str, object]) -> Prompt:
    match record:
        case {"question_id": int(number), "category": str(kind), "turns": [*turns]}:
            return Prompt(id=number, kind=kind, turns=tuple(str(turn) for turn in turns))
    raise ValueError(f"not a prompt record: {record!r}")
