"""What requests to the OpenAI API hold, in the order of its reference; unknown and unserved fields are refused.

Fields that ask for nothing are dropped before the check (`_HARMLESS`), since clients send them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

_ANY: Callable[[Any], bool] = lambda value: True  # noqa: E731
_HARMLESS: Mapping[str, Callable[[Any], bool]] = {  # name: which values ask for nothing
    "response_format": lambda value: value == {"type": "text"},
    "tools": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "parallel_tool_calls": _ANY,  # of tools, which are refused
    "modalities": lambda value: value == ["text"],
    "store": lambda value: value is False,
    "metadata": _ANY,  # of stored answers
    "user": _ANY,
    "safety_identifier": _ANY,
    "prompt_cache_key": _ANY,
    "service_tier": lambda value: value in ("auto", "default"),
    "echo": lambda value: value is False,
    "best_of": lambda value: value == 1,
}

MOST_ANSWERS = 16
"""Of one request: prompts times `n`."""

Text = Annotated[str, StringConstraints(max_length=2_000_000)]
Token = Annotated[int, Field(ge=0, lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def drop_what_asks_for_nothing(cls, given: Any) -> Any:
        """Leave out null, and values that ask for nothing."""
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if value is not None and not (name in _HARMLESS and name not in cls.model_fields and _HARMLESS[name](value))
        }


class TextPart(_Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(_Strict):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extension(_Strict):
    """What this server alone takes."""

    method: Annotated[str, StringConstraints(max_length=100)] | None = None
    """How to draft: the server's method, or plain."""
    trace: bool = False
    """Report each cycle in the chunks of a stream: its tokens, which of them were drafted, and its draft tree."""


class _Ask(_Strict):
    """What both kinds of request may hold."""

    model: Annotated[str, StringConstraints(max_length=1000)]
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] = 1
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, StringConstraints(min_length=1, max_length=1000)]
        | Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=1000)]], Field(min_length=1, max_length=16)
        ]
        | None
    ) = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    # Not of the OpenAI API, and taken by most servers that speak it.
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    slipstream: Extension = Extension()


class ChatAsk(_Ask):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2000)]
    logprobs: bool = False
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    continue_final_message: bool = False
    """Let the answer continue the last message. Not of the OpenAI API."""


class CompletionAsk(_Ask):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_ANSWERS)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=MOST_ANSWERS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
