"""From chat messages to token ids, by the chat template of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slipstream.errors import InputError
from slipstream.text import TEMPLATE_ERRORS

_OURS = ("messages", "tools", "add_generation_prompt", "continue_final_message")
_FORM = 'a prompt is text, token ids, or messages of the form {"role": ..., "content": ...}'


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateArguments:
    """What a chat template is given beside the messages, by the names that transformers has for it."""

    tools: Sequence[Any] | None = None
    """Functions with docstrings, or JSON schemas of functions, that the model may call."""
    continue_final_message: bool | None = None
    """True: the answer continues the last message; False: it is a message of its own; None: it continues a last message
    of the assistant's."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The template's own, such as enable_thinking."""

    @property
    def given(self) -> list[str]:
        """Names of those that were given."""
        named = {"tools": self.tools, "continue_final_message": self.continue_final_message}
        return [*(name for name, value in named.items() if value is not None), *self.chat_template_kwargs]


def encode_chat(tokenizer: Any, messages: Sequence[Any], arguments: TemplateArguments) -> list[int]:
    """Token ids of messages, up to where the answer begins.

    A message has a role, and content or tool_calls. Raises InputError for other messages, for what the template
    refuses, and for arguments that it does not read.
    """
    if not all(map(_is_message, messages)):
        raise InputError(_FORM)
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("this tokenizer has no chat template; give the prompt as one text")
    continuing = _continues(messages, arguments.continue_final_message)
    _check_is_read(_source(tokenizer, arguments.tools), messages, arguments)
    options: dict[str, Any] = {**arguments.chat_template_kwargs, "add_generation_prompt": not continuing}
    if continuing:
        options["continue_final_message"] = True
    if arguments.tools is not None:
        options["tools"] = list(arguments.tools)
    try:
        encoded = _apply(tokenizer, messages, options)
    except TEMPLATE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the chat template refuses these messages: {reason}") from error
    ids: list[int] = list(encoded["input_ids"])
    return ids


def _apply(tokenizer: Any, messages: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Calls without content have None there, as in the OpenAI API; templates that want text get an empty one."""
    silent = [message.get("content") is None for message in messages]
    if not any(silent):
        return tokenizer.apply_chat_template(list(messages), return_dict=True, **options)
    try:
        return tokenizer.apply_chat_template(_with_content(messages, None), return_dict=True, **options)
    except TEMPLATE_ERRORS:
        return tokenizer.apply_chat_template(_with_content(messages, ""), return_dict=True, **options)


def _with_content(messages: Sequence[Any], content: str | None) -> list[Any]:
    return [{**one, "content": content} if one.get("content") is None else one for one in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and "role" in message and ("content" in message or "tool_calls" in message)


def _continues(messages: Sequence[Any], asked: bool | None) -> bool:
    """Whether the answer continues the last message."""
    if asked not in (None, True, False):
        raise InputError(f"continue_final_message is {asked!r}; it must be True, False or None")
    if asked is None:
        return messages[-1]["role"] == "assistant" and bool(messages[-1].get("content"))
    return asked


def _source(tokenizer: Any, tools: Sequence[Any] | None) -> str:
    """The text of the template; a tokenizer may have several."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("tool_use" if tools is not None and "tool_use" in template else "default", "")
    return str(template)


def _check_is_read(source: str, messages: Sequence[Any], arguments: TemplateArguments) -> None:
    """Refuse what the template would ignore: it does not even name it."""
    if arguments.tools is not None and not _names(source, "tools"):
        raise InputError("this model's chat template has no place for tools; describe them in a system message")
    if any(message.get("tool_calls") for message in messages) and not _names(source, "tool_calls"):
        raise InputError("this model's chat template has no place for tool_calls; put them into the content as text")
    for name in arguments.chat_template_kwargs:
        if name in _OURS:
            raise InputError(f"{name} is no argument of the template's own; give it as an argument by itself")
        if not _names(source, name):
            raise InputError(f"this model's chat template does not read {name!r}; leave it out")


def _names(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None
