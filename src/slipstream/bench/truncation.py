"""Prompts that are too long: what is cut, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slipstream.errors import ContextLengthError
from slipstream.model import Model


class Encoded(NamedTuple):
    """A conversation in tokens."""

    ids: list[int]
    num_cut: int
    """Tokens of its longest message that were left out."""


def encode_within(model: Model, messages: Sequence[Mapping[str, str]], limit: int | None) -> Encoded:
    """The tokens of a conversation, at most `limit` of them.

    Where they are too many, the longest message loses its end, so that the task and the chat template stay whole.
    Raises ContextLengthError where the template alone fills the limit.
    """
    ids = _encode(model, messages)
    if limit is None or len(ids) <= limit:
        return Encoded(ids, 0)
    longest = max(range(len(messages)), key=lambda index: len(messages[index]["content"]))
    tokens: list[int] = model.tokenizer.encode(messages[longest]["content"], add_special_tokens=False)
    kept = len(tokens) - (len(ids) - limit)
    while kept > 0:
        text: str = model.tokenizer.decode(tokens[:kept])
        shorter = [{**message} for message in messages]
        shorter[longest]["content"] = text
        ids = _encode(model, shorter)
        if len(ids) <= limit:
            return Encoded(ids, len(tokens) - kept)
        kept -= len(ids) - limit  # text that was cut may need more tokens than it had before
    raise ContextLengthError(f"a prompt cannot be cut to {limit} tokens; allow more, or ask for shorter answers")


def _encode(model: Model, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """With the chat template, or, for a tokenizer without one, the texts one after the other."""
    has_template: Any = getattr(model.tokenizer, "chat_template", None)
    if has_template is not None:
        return model.encode(list(messages))
    return model.encode("\n\n".join(message["content"] for message in messages))
