"""Arguments of `Model.generate` and `Model.stream`: ours, and those that callers bring from transformers' `generate`.

What has a meaning here is taken under either name. What asks for nothing is accepted. The rest is refused with the name
to use instead; nothing is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slipstream.chat_template import TemplateArguments
from slipstream.core.logits import SETTING_NAMES, is_refused
from slipstream.errors import InputError, UnsupportedSettingError, unknown_choice

TEMPLATE_NAMES = ("continue_final_message", "tools", "enable_thinking", "chat_template_kwargs")
"""Arguments for the chat template."""
OWN_NAMES = (
    *("max_new_tokens", "max_length", "stop", "seed", "stream_id", "logprobs", "eos_token_id", "verification"),
    *("generation_config", "streamer", *TEMPLATE_NAMES),
)
"""Arguments beside those that `slipstream.core.logits` resolves."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_ANY: Callable[[Any], bool] = lambda value: True  # noqa: E731
_UNLESS_SET: Callable[[Any], bool] = lambda value: not value  # noqa: E731
_HARMLESS: Mapping[str, tuple[Callable[[Any], bool], str]] = {  # name: (which values ask for nothing, what to do else)
    "pad_token_id": (_ANY, ""),  # of batches
    "bos_token_id": (_ANY, ""),  # of empty prompts
    "return_dict_in_generate": (_ANY, ""),  # an Output has named fields
    "use_cache": (bool, "drafts are verified on cached keys; leave it out"),
    "output_scores": (_UNLESS_SET, "logprobs=N reports log-probabilities"),
    "output_logits": (_UNLESS_SET, "logprobs=N reports log-probabilities"),
    "output_attentions": (_UNLESS_SET, "attentions are not kept; leave it out"),
    "output_hidden_states": (_UNLESS_SET, "hidden states are not kept; leave it out"),
    "synced_gpus": (_UNLESS_SET, "generate on one process; leave it out"),
    "early_stopping": (_UNLESS_SET, "it belongs to beam search, which follows several texts at once; leave it out"),
    "past_key_values": (_UNLESS_SET, "keys and values of texts are kept by load(..., keep=N); leave it out"),
    "cache_implementation": (_UNLESS_SET, "the engine has a cache of its own; leave it out"),
}


def with_inputs(prompt: Any, settings: dict[str, Any]) -> Any:
    """The prompt, with what a tokenizer returned of it where that was spread over arguments. Takes those out."""
    if "inputs" in settings:
        settings["input_ids"] = settings.pop("inputs")
    given = {name: settings.pop(name) for name in _INPUTS if name in settings}
    given = {name: value for name, value in given.items() if value is not None}
    if prompt is not None and "input_ids" in given:
        raise InputError("the prompt was given twice, as prompt and as input_ids; give one of them")
    if not given:
        return prompt
    return given if prompt is None else {"input_ids": prompt, **given}


def check_names(settings: Mapping[str, Any]) -> None:
    """Raises InputError for an argument that is not known: lists all that are, and suggests the nearest."""
    known = (*OWN_NAMES, *SETTING_NAMES)
    for name in settings:
        if name not in (*known, *_HARMLESS, "tokenizer", "stop_strings") and not is_refused(name):
            raise unknown_choice("generation setting", name, known)


def drop_harmless(settings: dict[str, Any]) -> None:
    """Take out what asks for nothing. Raises UnsupportedSettingError for what would, naming what to use."""
    for name, (is_harmless, remedy) in _HARMLESS.items():
        value = settings.pop(name, None)
        if value is not None and not is_harmless(value):
            shown = f"{name}={value}" if isinstance(value, bool | int | str) else name
            raise UnsupportedSettingError(f"{shown} is not served: {remedy}")


def stop_strings(settings: dict[str, Any], default: Any) -> Any:
    """The strings before which the text ends, under either name, else the default. Takes both out."""
    given = {name: value for name in ("stop", "stop_strings") if (value := settings.pop(name, None)) is not None}
    if len(given) > 1:
        raise InputError("stop and stop_strings are one setting; give one of them")
    return next(iter(given.values()), default)


def check_tokenizer(given: Any, own: Any) -> None:
    """`generate` of transformers takes the tokenizer for stop strings; here it must be the model's."""
    if given is not None and given is not own and (own is None or given.get_vocab() != own.get_vocab()):
        raise InputError("tokenizer is not the one that the model was loaded with; give it to load(..., tokenizer=...)")


def check_streamer(streamer: Any) -> None:
    """Raises InputError for what is no streamer of transformers'."""
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise InputError(
            f"streamer is of type {type(streamer).__name__}; give one of transformers' with put and end, or iterate "
            "over model.stream(...)"
        )


def template_arguments(settings: dict[str, Any]) -> TemplateArguments:
    """What the chat template is given beside the messages. Takes it out of the settings."""
    more = settings.pop("chat_template_kwargs", None)
    if more is not None and not isinstance(more, Mapping):
        raise InputError(f"chat_template_kwargs is of type {type(more).__name__}; give a dictionary")
    template = dict(more or {})
    thinking = settings.pop("enable_thinking", None)
    if thinking is not None and template.setdefault("enable_thinking", thinking) != thinking:
        raise InputError("enable_thinking was given twice, with different values; give it once")
    tools = settings.pop("tools", None)
    if tools is not None and (not isinstance(tools, Sequence) or isinstance(tools, str | bytes)):
        raise InputError(f"tools is of type {type(tools).__name__}; give a list of functions or of JSON schemas")
    return TemplateArguments(
        tools=tools,
        continue_final_message=settings.pop("continue_final_message", None),
        chat_template_kwargs=template,
    )
