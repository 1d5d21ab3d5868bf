"""From a request of the API to what the engine is asked: one function for the settings, one for each kind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from slipstream.core.sampling import draw_seed
from slipstream.engine.sequence import Request, check_request
from slipstream.errors import InputError
from slipstream.model import Model
from slipstream.server.wire import MOST_ANSWERS, ChatAsk, CompletionAsk
from slipstream.text import AnswerText


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer that is asked for."""

    prompt: int
    """Which prompt of the request it answers."""
    request: Request
    text: AnswerText
    method: str | None = None
    """How to draft; None: by the server's own method."""


def of_chat(model: Model, ask: ChatAsk, most_tokens: int) -> list[Asked]:
    """The `n` answers to a chat. Raises InputError for what the model, its template or the engine refuses."""
    if ask.top_logprobs is not None and not ask.logprobs:
        raise InputError("top_logprobs is for logprobs=true; set it")
    if ask.max_tokens is not None and ask.max_completion_tokens is not None:
        raise InputError("max_tokens and max_completion_tokens are one setting; give one of them")
    settings = _settings(model, ask)
    settings["logprobs"] = (ask.top_logprobs or 0) if ask.logprobs else None
    settings["max_new_tokens"] = ask.max_tokens or ask.max_completion_tokens or most_tokens
    messages = [message.plain() for message in ask.messages]
    prompt = model.encode(messages, continue_final_message=ask.continue_final_message)
    return _answers(model, ask, [prompt], settings)


def of_completion(model: Model, ask: CompletionAsk, most_tokens: int) -> list[Asked]:
    """The answers to all prompts, `n` each. Raises InputError for what the model or the engine refuses."""
    prompts = ask.prompts()
    if len(prompts) * ask.n > MOST_ANSWERS:
        raise InputError(f"{len(prompts)} prompts with n={ask.n} are more than {MOST_ANSWERS} answers; ask for fewer")
    settings = _settings(model, ask)
    settings["logprobs"] = ask.logprobs
    settings["max_new_tokens"] = ask.max_tokens or most_tokens
    return _answers(model, ask, [model.encode_raw(one) if isinstance(one, str) else one for one in prompts], settings)


def _settings(model: Model, ask: ChatAsk | CompletionAsk) -> dict[str, Any]:
    """Those of `Model.generate`. What is not given is the model's own, as far as it has one.

    A top_p without a temperature samples at 1, as the API says; alone it would be idle where the model is greedy.
    """
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    settings: dict[str, Any] = {name: getattr(ask, name) for name in names}
    if ask.temperature is None and any(getattr(ask, name) is not None for name in ("top_p", "top_k", "min_p")):
        settings["temperature"] = 1.0
    settings["seed"] = None if ask.seed is None else ask.seed % 2**64
    settings["stop"] = ask.stop
    if ask.slipstream.trace and (ask.stop is not None or not ask.stream):
        raise InputError("traces are for streams without stop strings; set stream=true and leave out stop")
    if ask.logit_bias:
        settings["sequence_bias"] = [[[_token(model, one)], bias] for one, bias in ask.logit_bias.items()]
    return settings


def _token(model: Model, text: str) -> int:
    vocab_size = model.target.vocab_size
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and int(text) < vocab_size):
        raise InputError(f"logit_bias names {text!r}; its keys are token ids from 0 to {vocab_size - 1}")
    return int(text)


def _answers(
    model: Model, ask: ChatAsk | CompletionAsk, prompts: list[list[int]], settings: dict[str, Any]
) -> list[Asked]:
    """Samples of one prompt share a seed and differ by their stream."""
    if settings["seed"] is None:
        settings["seed"] = draw_seed()
    found = []
    for number, prompt in enumerate(prompts):
        for stream in range(ask.n):
            request, text = model.prepare(prompt, stream_id=stream, **settings)
            assert text is not None
            check_request(request, model.target)
            request = replace(request, trace=ask.slipstream.trace)
            found.append(Asked(number, request, text, ask.slipstream.method))
    return found
