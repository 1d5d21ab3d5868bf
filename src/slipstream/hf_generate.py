"""The engine inside transformers' `generate`, as the callable that its argument `custom_generate` takes.

`generate` resolves its arguments and prepares processors, criteria and a cache, and then calls the callable with them.
Here the resolved configuration is decoded by; whatever else was prepared must say the same. What does not, or cannot be
honoured, is refused by name.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput, StoppingCriteriaList

from slipstream.core.logits import refusal
from slipstream.engine.sequence import Request
from slipstream.errors import InputError, UnsupportedSettingError
from slipstream.methods.registry import find_method
from slipstream.model import Model, load
from slipstream.prompt_ids import given_ids

OnTokens = Callable[[list[int]], None]
"""Told the tokens of every cycle, as they are emitted."""

logger = logging.getLogger(__name__)

_OF_LOAD = frozenset(inspect.signature(load).parameters)
_CACHES = ("past_key_values", "cache_params", "cache")
_READ = (*_CACHES, "attention_mask", "position_ids", "token_type_ids")
_OF_FORWARD = ("use_cache", "logits_to_keep", "output_attentions", "output_hidden_states")
"""What `generate` adds for the model's forward; the configuration says it, too."""
_TENSORS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def custom_generate(drafter: str = "auto", *, tokenizer: Any = None, **options: Any) -> CustomGenerate:
    """For `model.generate(**inputs, custom_generate=...)`: the same tokens by speculative decoding.

    drafter, options: as for `slipstream.load`. tokenizer: needed for `stop` alone. Keep what is returned and give it to
    every call: it holds the drafter of the model that it was last called for, and so the model.

    Raises InputError for an unknown method or option.
    """
    return CustomGenerate(drafter, tokenizer=tokenizer, **options)


class CustomGenerate:
    """What `custom_generate` returns."""

    def __init__(self, drafter: str = "auto", *, tokenizer: Any = None, **options: Any) -> None:
        self._options = {name: value for name, value in options.items() if value is not None}
        find_method(drafter, self._options.keys() - _OF_LOAD)  # before `generate` has begun
        self._drafter, self._tokenizer = drafter, tokenizer
        self._loaded: Model | None = None

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Sequence[Any] = (),
        stopping_criteria: Sequence[Any] = (),
        generation_config: GenerationConfig | None = None,
        *,
        on_tokens: OnTokens | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        tokenizer: Any = None,
        **inputs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Generate, as `generate` asks for it.

        input_ids: [1, length], padded on the left where an attention mask says so. Arguments of `generate` beside its
        own: on_tokens, called with the list of tokens of each cycle; stop, strings after which the answer ends, looked
        for in the answer alone; seed, of sampling, by default drawn from torch's generator. tokenizer is not handed on
        by `generate`.

        Returns what `generate` returns: [1, length + answer], or a `GenerateDecoderOnlyOutput` without a cache.
        Raises InputError, or UnsupportedSettingError for what has no lossless form.
        """
        if generation_config is None:
            raise InputError("custom_generate is called by transformers' generate; give it to model.generate(...)")
        check_inputs(generation_config, inputs)
        loaded = self._load(model)
        tokenizer = self._tokenizer if tokenizer is None else tokenizer
        if stop and tokenizer is None:
            raise InputError("stop needs a tokenizer; pass tokenizer=... to slipstream.custom_generate")
        request = _request(loaded, input_ids, generation_config, inputs, stop, seed, tokenizer)
        check_prepared(model, input_ids, generation_config, inputs, logits_processor, stopping_criteria)
        tokens = _decode(loaded, request, on_tokens)
        sequences = torch.cat((input_ids, input_ids.new_tensor([tokens])), dim=1)  # [1, length + answer]
        return (
            GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences
        )

    def _load(self, model: PreTrainedModel) -> Model:
        """The model with its drafter, kept for further calls."""
        if self._loaded is None or self._loaded.target.model is not model:
            self._loaded = load(model, self._drafter, tokenizer=self._tokenizer, **self._options)
        return self._loaded


def _request(
    loaded: Model,
    input_ids: Tensor,
    config: GenerationConfig,
    inputs: Mapping[str, Any],
    stop: str | Sequence[str] | None,
    seed: int | None,
    tokenizer: Any,
) -> Request:
    length = input_ids.shape[1]  # in which `generate` counts padding, too
    settings: dict[str, Any] = {"seed": _seed(config) if seed is None else seed}
    settings["max_new_tokens"] = config.max_length - length
    settings["min_new_tokens"] = max(0, (config.min_length or 0) - length)
    text = loaded.answer_text(stop, tokenizer) if stop else None
    request = loaded.build_request(_prompt(input_ids, inputs), config, settings, stopper=text)
    if input_ids.shape[0] > 1:
        raise InputError(f"the batch has {input_ids.shape[0]} rows; batches are not served: generate once for each row")
    return request


def _seed(config: GenerationConfig) -> int:
    """From torch's generator, so that `torch.manual_seed` reproduces an answer as it does for `generate`."""
    return int(torch.randint(2**32, ())) if config.do_sample else 0


def _prompt(input_ids: Tensor, inputs: Mapping[str, Any]) -> list[int]:
    """The first row without its padding."""
    row: dict[str, Any] = {"input_ids": input_ids[:1]}
    for name in ("attention_mask", "token_type_ids"):
        if inputs.get(name) is not None:
            row[name] = inputs[name][:1]
    mask = row.get("attention_mask")
    if mask is not None and not mask[0, -1]:
        raise InputError("the prompt is padded on the right; pad on the left: tokenizer.padding_side = 'left'")
    ids = given_ids(row)
    assert ids is not None
    _check_positions(inputs.get("position_ids"), input_ids.shape[1], len(ids))
    return ids


def _check_positions(position_ids: Tensor | None, length: int, count: int) -> None:
    """Those of the prompt, behind its padding, must count from 0: the engine's do."""
    if position_ids is None:
        return
    places = position_ids.reshape(-1, length)[:, -count:]  # some models have several rows of them
    if not (places == torch.arange(count, device=places.device)).all():
        raise InputError("position_ids do not count from 0 without a gap, and others are not read; leave them out")


def _decode(loaded: Model, request: Request, on_tokens: OnTokens | None) -> list[int]:
    tokens: list[int] = []
    for step in loaded.engine.generate(request):
        tokens.extend(step.token_ids)
        if on_tokens is not None:
            on_tokens(list(step.token_ids))
        if step.finish_reason == "context":
            logger.warning(
                "the answer ends where the model's context of %s tokens is full", loaded.target.context_length
            )
    return tokens


def check_inputs(config: GenerationConfig, inputs: Mapping[str, Any]) -> None:
    """Raises InputError for inputs of the model, caches and outputs that the engine would ignore."""
    for name, value in inputs.items():
        if value is not None and name not in (*_READ, *_OF_FORWARD):
            raise InputError(f"{name} is not read: text alone is generated from, as input_ids; leave it out")
    if config.use_cache is False:
        raise UnsupportedSettingError("use_cache=False is not served: drafts are verified on cached keys; leave it out")
    for name in _TENSORS:
        if config.return_dict_in_generate and getattr(config, name, None):
            raise UnsupportedSettingError(f"{name}=True is not served: nothing but tokens is returned; leave it out")
    if config.cache_implementation == "quantized":
        raise UnsupportedSettingError(
            "a quantized cache changes tokens, and the engine has a cache of its own; leave it out"
        )
    for name in _CACHES:
        _check_cache(name, inputs.get(name))


def _check_cache(name: str, cache: Any) -> None:
    """The one that `generate` has made is empty, and is left so."""
    if cache is None:
        return
    if count := cache.get_seq_length():
        raise InputError(
            f"{name} holds {count} tokens, and the engine goes on from caches of its own alone; leave it out: keys and "
            "values of the last texts are kept (keep=N)"
        )
    if getattr(cache, "_is_user_defined", False):
        raise InputError(f"{name} would stay empty, since the engine has a cache of its own; leave it out")


def check_prepared(
    model: PreTrainedModel,
    input_ids: Tensor,
    config: GenerationConfig,
    inputs: Mapping[str, Any],
    processors: Iterable[Any],
    criteria: Iterable[Any],
) -> None:
    """Raises UnsupportedSettingError for a processor or criterion that the configuration does not ask for."""
    asked = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=input_ids.shape[1],
        encoder_input_ids=input_ids,
        device=input_ids.device,
        model_kwargs=dict(inputs),
    )
    if (one := _first_further(processors, asked)) is not None:
        raise refusal("logits_processor", f"the logits processor {type(one).__name__}")
    asked = model._get_stopping_criteria(generation_config=config, stopping_criteria=StoppingCriteriaList())
    if (one := _first_further(criteria, asked)) is not None:
        raise refusal("stopping_criteria", f"the stopping criterion {type(one).__name__}")


def _first_further(given: Iterable[Any], asked: Iterable[Any]) -> Any:
    """The first of `given` that is like none of `asked`; None: there is none."""
    left = list(asked)
    for one in given:
        like = next((place for place, other in enumerate(left) if _is_like(one, other)), None)
        if like is None:
            return one
        del left[like]
    return None


def _is_like(one: Any, other: Any) -> bool:
    """Whether two processors or criteria are of one kind and hold equal values."""
    if type(one) is not type(other):
        return False
    mine, theirs = vars(one), vars(other)
    return mine.keys() == theirs.keys() and all(_is_equal(value, theirs[name]) for name, value in mine.items())


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)
