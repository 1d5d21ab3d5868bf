"""What a skip set is searched on: the shipped prompts of a kind, by the name of a task, or a file of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slipstream.errors import InputError, unknown_choice
from slipstream.prompts import KINDS, load_prompts
from slipstream.skipping.library import DEFAULT, canonical

Messages = list[dict[str, str]]

_KIND_OF = {**{kind: kind for kind in KINDS if kind != "articles"}, "summarisation": "articles"}
TASKS = (DEFAULT, *_KIND_OF)
"""Tasks of which prompts ship; `default` has prompts of every kind."""


def task_prompts(task: str) -> list[Messages]:
    """The shipped prompts of a task, first turns only. Raises InputError for a task of which none ship."""
    name = canonical(task)
    if name not in TASKS:
        raise unknown_choice("task", task, TASKS)
    prompts = [one for one in load_prompts() if name == DEFAULT or one.kind == _KIND_OF[name]]
    return [[{"role": "user", "content": one.turns[0]}] for one in prompts]


def read_prompts(path: Path) -> list[Messages]:
    """The prompts of a file with one JSON object a line: `turns` (the first counts), or `messages` up to an answer.

    Raises InputError naming the line that is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the prompts in {str(path)!r}: {error}") from error
    prompts = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise InputError(f"{path} holds no prompts; give a JSON object with `turns` or `messages` in each line")
    return prompts


def _parse(line: str, place: str) -> Messages:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON ({error})") from error
    match record:
        case {"turns": [str(first), *_]}:
            return [{"role": "user", "content": first}]
        case {"messages": [*messages]} if messages and all(map(_is_message, messages)):
            until = len(messages) - (messages[-1]["role"] == "assistant")
            if until:
                return [{"role": one["role"], "content": one["content"]} for one in messages[:until]]
    raise InputError(f"{place} has neither `turns` (texts) nor `messages` (of role and content, before the answer)")


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
