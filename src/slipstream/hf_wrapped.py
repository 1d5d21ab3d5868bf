"""A model whose `generate` is transformers' in all but how the tokens are found; and the folder form of it.

`generate` hands no callable its streamer, tokenizer or assistant model. Here they are taken before it is called.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput

from slipstream.errors import InputError, UnsupportedSettingError
from slipstream.hf_generate import CustomGenerate, OnTokens
from slipstream.target.adapters import unwrapped

_SIGNATURE = inspect.signature(GenerationMixin.generate)
_REFUSED: Mapping[str, str] = {
    "assistant_model": "drafts are made here: choose the method draft-model, with draft=PATH",
    "assistant_tokenizer": "drafts are made here: choose the method draft-model, with draft=PATH",
    "synced_gpus": "generate on one process; leave it out",
    "custom_generate": "this generate is one already; leave it out",
    "negative_prompt_ids": "they need a second pass of the model; leave them out",
    "negative_prompt_attention_mask": "it needs a second pass of the model; leave it out",
}


def wrap(model: Any, drafter: str = "auto", *, tokenizer: Any = None, **options: Any) -> Wrapped:
    """A loaded model of transformers whose `generate` decodes speculatively: the same arguments, the same tokens.

    drafter, options: as for `slipstream.load`. tokenizer: for stop strings, where the calls give none.

    Raises InputError for what is no model of transformers, and for an unknown method or option.
    """
    return Wrapped(model, drafter, tokenizer=tokenizer, **options)


class Wrapped:
    """What `wrap` returns. What is asked of it beside `generate` is the model's."""

    def __init__(self, model: Any, drafter: str = "auto", *, tokenizer: Any = None, **options: Any) -> None:
        self._model = unwrapped(model)
        self._decode = CustomGenerate(drafter, tokenizer=tokenizer, **options)

    def __getattr__(self, name: str) -> Any:
        if name == "_model":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._model, name)

    def generate(self, *arguments: Any, **named: Any) -> Tensor | GenerateDecoderOnlyOutput:
        """Generate for a batch of one. Takes the arguments of transformers' `generate`, by its names and in its order.

        stop_strings end the answer with the tokens that complete one. A streamer is given the prompt, and then the
        tokens of every cycle. on_tokens, stop and seed are those of `custom_generate`.

        Raises InputError, or UnsupportedSettingError for what has no lossless form or is not served, by name.
        """
        given = _by_name(self._model, arguments, named)
        for name, remedy in _REFUSED.items():
            value = given.pop(name, None)
            if value is not None and value is not False:
                raise UnsupportedSettingError(f"{name} is not served: {remedy}")
        streamer = given.pop("streamer", None)
        decode = partial(
            self._decode,
            stop=_take_stop(self._model, given),
            tokenizer=given.pop("tokenizer", None),
            on_tokens=_listener(streamer, given.pop("on_tokens", None)),
        )
        try:
            return type(self._model).generate(self._model, custom_generate=decode, streamer=streamer, **given)
        finally:
            if streamer is not None:
                streamer.end()


def _by_name(model: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    bound = dict(_SIGNATURE.bind(model, *arguments, **named).arguments)
    del bound["self"]
    further: dict[str, Any] = bound.pop("kwargs", {})
    return {**bound, **further}


def _take_stop(model: Any, given: dict[str, Any]) -> str | Sequence[str] | None:
    """The stop strings, under any of their names or the model's own; none are left for `generate` to see."""
    config = given.get("generation_config")
    named = {name: given.pop(name, None) for name in ("stop", "stop_strings")}
    several = [value for value in named.values() if value is not None]
    if len(several) > 1:
        raise InputError("stop and stop_strings are one setting; give one of them")
    for own in (config, model.generation_config):
        several.append(getattr(own, "stop_strings", None))
    if config is not None and config.stop_strings is not None:
        given["generation_config"] = copy.deepcopy(config)
        given["generation_config"].stop_strings = None
    if model.generation_config.stop_strings is not None:
        given["stop_strings"] = None  # goes before the model's
    return next((value for value in several if value is not None), None)


def _listener(streamer: Any, on_tokens: OnTokens | None) -> OnTokens | None:
    """Tells a streamer of transformers', which `generate` itself tells the prompt, and the caller's function."""
    if streamer is None:
        return on_tokens

    def tell(tokens: list[int]) -> None:
        streamer.put(torch.tensor(tokens))
        if on_tokens is not None:
            on_tokens(tokens)

    return tell


class FolderGenerate:
    """`generate` of a folder that `generate(custom_generate=FOLDER, trust_remote_code=True)` loads.

    The drafter of the model that was generated with last is kept, and so is that model, until another is.
    """

    def __init__(self) -> None:
        self._last: tuple[dict[str, Any], Wrapped] | None = None

    def __call__(
        self,
        model: Any,
        *,
        drafter: str = "auto",
        draft: Any = None,
        options: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """As `Wrapped.generate`; drafter, draft and options are those of `slipstream.load`."""
        asked = {"drafter": drafter, "draft": draft, **(options or {})}
        if self._last is None or self._last[0] != asked or self._last[1]._model is not unwrapped(model):
            self._last = asked, Wrapped(model, **asked)
        return self._last[1].generate(**arguments)
