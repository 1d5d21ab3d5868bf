"""From a model's `generation_config` and the caller's arguments to the settings of one generation.

Precedence is that of `transformers`: the caller's argument, then the model's `generation_config`. One departure: a
warper that neither of them sets is off. (`generate` fills gaps with library-wide defaults, of which only `top_k=50`
changes the distribution; a model does not ask for it, so it is not applied here.)

A setting that has no lossless form here is refused by name, never ignored. Entries of a `generation_config` that do
not change which tokens come out (caches, outputs, hints for transformers' own assisted decoding, custom entries that
`generate` does not read either) are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from slipstream.core.logits.settings import LIMITS, ProcessingSettings
from slipstream.errors import InputError, UnsupportedSettingError, unknown_choice

if TYPE_CHECKING:
    from transformers import GenerationConfig

logger = logging.getLogger(__name__)

_TRUNCATIONS = ("top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that only sampling reads."""

_SEQUENCES = "follows several texts at once"
_REFUSED: dict[str, tuple[object, str]] = {  # name: (value that means "off", why any other is refused)
    "num_beams": (1, _SEQUENCES),
    "num_beam_groups": (1, _SEQUENCES),
    "num_return_sequences": (1, "asks for several answers in one call; generate once for each `stream_id`"),
    "diversity_penalty": (0.0, _SEQUENCES),
    "constraints": (None, _SEQUENCES),
    "force_words_ids": (None, _SEQUENCES),
    "penalty_alpha": (0.0, "compares hidden states of candidate tokens"),
    "dola_layers": (None, "contrasts layers of the model"),
    "guidance_scale": (1.0, "needs a second, unconditional pass of the model"),
    "watermarking_config": (None, "keeps state from token to token"),
    "token_healing": (False, "rewrites the prompt"),
    "encoder_repetition_penalty": (1.0, "belongs to encoder-decoder models"),
    "encoder_no_repeat_ngram_size": (0, "belongs to encoder-decoder models"),
    "max_time": (None, "makes the output depend on the clock"),
    "is_assistant": (False, "stops at tokens the model is unsure of"),
    "assistant_ensemble_weight": (None, "changes the output distribution"),
}
_ASSISTED = "belongs to transformers' own assisted decoding; choose a drafter instead"
_CUSTOM = "runs code that may keep state, so it cannot be applied to every node of a draft tree"
_REFUSED_ARGUMENTS: dict[str, tuple[object, str]] = {  # an argument that a `generation_config` never carries,
    "logits_processor": (None, _CUSTOM),  # or one that is harmless there
    "prefix_allowed_tokens_fn": (None, _CUSTOM),
    "stopping_criteria": (None, _CUSTOM),
    "custom_generate": (None, _CUSTOM),
    "negative_prompt_ids": (None, "needs a second, unconditional pass of the model"),
    "assistant_model": (None, _ASSISTED),
    "prompt_lookup_num_tokens": (None, _ASSISTED),
    "assistant_early_exit": (None, _ASSISTED),
    "use_mtp": (False, _ASSISTED),
    "speculation_type": (None, _ASSISTED),
}
_INSTEAD = {
    "logits_processor": "use settings such as bad_words_ids, sequence_bias, suppress_tokens and repetition_penalty",
    "stopping_criteria": "use stop, eos_token_id or max_new_tokens",
    "prefix_allowed_tokens_fn": "use settings such as suppress_tokens and sequence_bias",
}
"""What does the same in a form that can be applied, where that is not simply to leave a setting out."""
_ONLY_ARGUMENTS = ("presence_penalty", "frequency_penalty")
"""Penalties of the OpenAI API, which transformers does not read from a `generation_config`."""

_FIELD_NAMES = tuple(
    f.name for f in fields(ProcessingSettings) if f.name not in ("prompt_length", "max_length", "eos_token_ids")
)
SETTING_NAMES: tuple[str, ...] = ("do_sample", "min_new_tokens", *_FIELD_NAMES)
"""The names that `resolve` takes as overrides."""


def resolve(
    generation_config: GenerationConfig,
    overrides: Mapping[str, Any],
    *,
    prompt_length: int,
    max_new_tokens: int,
    eos_token_ids: Iterable[int],
) -> ProcessingSettings:
    """Settings of one generation: the caller's `overrides` (None = not given) over the model's `generation_config`.

    Sampling: a caller's `temperature` decides (0 greedy, else sampling); else `do_sample`, the caller's before the
    model's, with a temperature of 1 where none is set. When decoding greedily the truncations are off. `min_new_tokens`
    goes before `min_length`. `max_new_tokens` is the budget asked for, before any cut at the context limit.

    Raises InputError for an unknown name (the nearest is suggested), a value out of range or arguments that contradict
    one another; UnsupportedSettingError for a setting that has no lossless form here.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    _check_names(given)
    inherited = {name: getattr(generation_config, name, None) for name in (*SETTING_NAMES, *_REFUSED)}
    for name in _ONLY_ARGUMENTS:
        if inherited.pop(name, None):
            logger.warning("%s in the generation_config is not read by transformers; pass it as an argument", name)
    values = {name: value for name, value in inherited.items() if value is not None} | given
    _refuse_unsupported(values)
    for name in _TRUNCATIONS:
        LIMITS[name].check(name, given.get(name))  # also where greedy decoding does not read it
    values["temperature"] = _temperature(given, values)
    if values["temperature"] == 0:
        values = {name: value for name, value in values.items() if name not in _TRUNCATIONS}
    if "min_new_tokens" in values:
        LIMITS["min_length"].check("min_new_tokens", values["min_new_tokens"])
        values["min_length"] = values["min_new_tokens"] + prompt_length
    return ProcessingSettings(
        prompt_length=prompt_length,
        max_length=prompt_length + max_new_tokens,
        eos_token_ids=tuple(sorted(set(eos_token_ids))),
        **{name: _normalise(name, values[name]) for name in _FIELD_NAMES if name in values},
    )


def _check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in SETTING_NAMES and not is_refused(name):
            raise unknown_choice("generation setting", name, SETTING_NAMES)


def is_refused(name: str) -> bool:
    """Whether this is a setting of transformers without a lossless form here."""
    return name in _REFUSED or name in _REFUSED_ARGUMENTS


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    for name, (neutral, _) in (_REFUSED | _REFUSED_ARGUMENTS).items():
        value = values.get(name)
        if value is None or (isinstance(value, int | float) and value == neutral):
            continue
        if isinstance(value, list) and not value:  # of processors or criteria: none
            continue
        shown = f"{name}={value}" if isinstance(value, int | float | str) else name
        raise refusal(name, shown)


def refusal(name: str, shown: str) -> UnsupportedSettingError:
    """The error for a setting of transformers without a lossless form here: why, and what to do instead."""
    neutral, reason = (_REFUSED | _REFUSED_ARGUMENTS)[name]
    remedy = _INSTEAD.get(name) or ("remove it" if neutral is None else f"remove it or set it to {neutral}")
    return UnsupportedSettingError(f"{shown} has no lossless form here: it {reason}; {remedy}")


def _temperature(given: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    """The resolved temperature; contradictions between the caller's own arguments are errors."""
    asked, do_sample = given.get("temperature"), values.get("do_sample") is True
    LIMITS["temperature"].check("temperature", asked)
    if asked is not None:
        if given.get("do_sample") not in (None, asked > 0):
            raise InputError(f"temperature={asked} contradicts do_sample={given['do_sample']}; give one of them")
        temperature = float(asked)
    else:
        temperature = float(values.get("temperature", 1.0)) if do_sample else 0.0
    if temperature == 0:
        _refuse_idle_truncations(given, greedy_asked=asked is not None)
    return temperature


def _refuse_idle_truncations(given: Mapping[str, Any], *, greedy_asked: bool) -> None:
    """A caller's truncation that greedy decoding would ignore.

    With temperature=0 asked for, those that always keep the most probable token are harmless; `typical_p` is not.
    """
    off = {f.name: f.default for f in fields(ProcessingSettings) if f.name in _TRUNCATIONS}
    for name in ("typical_p",) if greedy_asked else _TRUNCATIONS:
        if given.get(name, off[name]) != off[name]:
            raise InputError(
                f"{name}={given[name]} has no effect when decoding greedily; give a temperature above 0, or drop it"
            )


def _normalise(name: str, value: Any) -> Any:
    """`value` in the form ProcessingSettings keeps it: plain numbers, tuples instead of lists and dicts."""
    shape = _SHAPES.get(name)
    if shape is None:
        return float(value) if isinstance(value, int) and name in LIMITS and not LIMITS[name].whole else value
    try:
        return shape(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {value!r}, which cannot be read ({error}); see GenerationConfig's docs") from error


def _ids(value: Any) -> tuple[int, ...]:
    """Token ids, from one id or several."""
    several = [value] if isinstance(value, int) else value
    ids = tuple(int(token) for token in several)
    if any(token < 0 for token in ids):
        raise ValueError("token ids start at 0")
    return ids


def _id_sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    sequences = tuple(_ids(sequence) for sequence in value)
    if not all(sequences):
        raise ValueError("a sequence is empty")
    return sequences


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    keys, biases = zip(*pairs, strict=True)
    return tuple(zip(_id_sequences(keys), (float(bias) for bias in biases), strict=True))


def _start_and_factor(value: Any) -> tuple[int, float]:
    start, factor = value
    return int(start), float(factor)


_SHAPES: Mapping[str, Callable[[Any], Any]] = {
    "bad_words_ids": _id_sequences,
    "sequence_bias": _biases,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "forced_eos_token_id": _ids,
    "forced_bos_token_id": int,
    "exponential_decay_length_penalty": _start_and_factor,
    "remove_invalid_values": bool,
    "renormalize_logits": bool,
}
