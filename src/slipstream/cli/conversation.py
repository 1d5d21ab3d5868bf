"""A conversation: its messages, the files that it is kept in, and its answers one after another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipstream.cli.answering import stream_answer
from slipstream.errors import InputError

if TYPE_CHECKING:
    from slipstream import Model, Output
    from slipstream.engine.sequence import Step

Show = Callable[["Step"], None]
"""Shows what a cycle has added to an answer."""


@dataclass
class Conversation:
    """What has been said so far, and what it cost."""

    model: Model
    method: str
    """The model's, as the user knows it."""
    settings: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[tuple[str, Output]] = field(default_factory=list)
    """Of all answers, with the method of each."""

    @property
    def is_answered(self) -> bool:
        """Whether the last word is the assistant's."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def answer(self, text: str, show: Show) -> Output:
        """Answer a message. One that is refused, or interrupted before anything is said, is dropped."""
        self.messages.append({"role": "user", "content": text})
        try:
            return self.go_on(show)
        except (InputError, KeyboardInterrupt):
            if not self.is_answered:
                self.messages.pop()
            raise

    def go_on(self, show: Show) -> Output:
        """Continue the last answer, or answer what is unanswered. What is said before an interrupt stays."""
        said: list[str] = []

        def take(step: Step) -> None:
            said.append(step.text)
            show(step)

        try:
            output = stream_answer(self.model, self.messages, self.settings, take)
        except (InputError, KeyboardInterrupt):
            if said:
                self._keep("".join(said))
            raise
        self._keep("".join(said))
        self.outputs.append((self.method, output))
        return output

    def _keep(self, said: str) -> None:
        if self.is_answered:
            self.messages[-1] = {**self.messages[-1], "content": (self.messages[-1].get("content") or "") + said}
        else:
            self.messages.append({"role": "assistant", "content": said})

    def forget(self) -> None:
        """Begin anew, under the same system message if there is one."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]


def read_messages(path: Path, system: str | None = None) -> list[dict[str, Any]]:
    """The messages of a file that `write_messages` wrote: a JSON list. system: a system message to begin with.

    Raises InputError for a file that cannot be read, holds something else, or begins with a system message of its own.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); give a list of messages") from error
    if not isinstance(messages, list) or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise InputError(f'{path} is no list of messages of the form {{"role": ..., "content": ...}}')
    if system is None:
        return messages
    if messages and messages[0]["role"] == "system":
        raise InputError(f"{path} begins with a system message; leave --system out, or take it out of the file")
    return [*system_message(system), *messages]


def write_messages(messages: list[dict[str, Any]], path: Path) -> None:
    """Raises InputError for a file that cannot be written."""
    try:
        path.write_text(json.dumps(messages, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def system_message(text: str | None) -> list[dict[str, Any]]:
    """The message that a conversation begins with, if there is one."""
    return [] if text is None else [{"role": "system", "content": text}]
