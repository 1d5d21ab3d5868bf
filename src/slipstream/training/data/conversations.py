"""Lines of training files as conversations: the layouts that are read, and what of them is text.

    {"messages": [{"role": "user", "content": "..."}, ...]}     content: text, a list of parts, or null
    {"conversations": [{"from": "human", "value": "..."}, ...]} as ShareGPT has it
    {"text": "..."}

A turn without text (a call of a tool) stays in its place, empty. What is malformed is an error that names the line; a
conversation that is well-formed but cannot be used is left out, counted, and said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slipstream.errors import InputError

Segments = tuple[tuple[str, str], ...]
"""(role, content) in order."""

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function_call": "assistant",
    "observation": "tool",
}
_FORMS = 'each line must be {"messages": [...]}, {"conversations": [...]} or {"text": ...}'


class UnusableError(Exception):
    """A conversation is well-formed, but nothing can be learned from it; the text says why."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a file in UTF-8, with or without a byte order mark; blank lines are passed over.

    Raises InputError for another encoding.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path} line {number} is not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from error
            if text.strip():
                yield number, text


def segments_of(line: str, place: str) -> Segments:
    """The conversation of a line; plain text is one segment of role `text`.

    Raises InputError, which names the place, for a line that has none of the layouts; UnusableError.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON ({error}); {_FORMS}") from error
    if not isinstance(record, dict):
        raise InputError(f"{place} is not a training example; {_FORMS}")
    segments = _plain_text(record, place) if "text" in record else _turns(record, place)
    if not any(content for _, content in segments):
        raise UnusableError("it has no text")
    for _, content in segments:
        _refuse_lone_surrogates(content)
    return segments


def _plain_text(record: Mapping[str, Any], place: str) -> Segments:
    return (("text", _text(record["text"], place)),)


def _turns(record: Mapping[str, Any], place: str) -> Segments:
    turns = record.get("messages", record.get("conversations"))
    if not isinstance(turns, list):
        raise InputError(f"{place} is not a training example; {_FORMS}")
    return tuple(_turn(turn, place) for turn in turns)


def _turn(turn: Any, place: str) -> tuple[str, str]:
    if isinstance(turn, dict) and isinstance(turn.get("role"), str):
        return turn["role"], _text(turn.get("content"), place)
    if isinstance(turn, dict) and "from" in turn and "value" in turn:
        if turn["from"] not in _SHAREGPT_ROLES:
            names = ", ".join(_SHAREGPT_ROLES)
            raise InputError(f"{place} has a turn from {turn['from']!r}; it must be from one of {names}")
        return _SHAREGPT_ROLES[turn["from"]], _text(turn["value"], place)
    raise InputError(f'{place} has a turn that is neither {{"role", "content"}} nor {{"from", "value"}}')


def _text(content: Any, place: str) -> str:
    """The text of a turn, of its text parts one after another; empty where there is none."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{place} has a turn whose content is {content!r}; it must be text, or a list of parts")
    return "".join(_part(part, place) for part in content)


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return str(part["text"])
    if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
        raise UnusableError(f"it has a part of type {part['type']!r}, and only text is read")
    raise InputError(f'{place} has a part of content that is neither text nor {{"type": ..., ...}}')


def _refuse_lone_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableError(
            f"it has half a surrogate pair (\\u{ord(text[error.start]):04x}), which is no text"
        ) from error
