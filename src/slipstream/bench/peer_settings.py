"""What transformers' `generate` is told, so that a peer decodes the same distribution as our methods.

Everything is inherited from the model's `generation_config`, as `generate` does; `slipstream.core.logits.resolve`
reads the same one for our methods, and refuses what has no lossless form. One gap is filled differently: `generate`
sets `top_k=50` where neither caller nor model set it, and here it stays off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from slipstream.core.logits import resolve
from slipstream.errors import ContextLengthError, UnsupportedSettingError
from slipstream.target.target import Target

_WARPERS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OWN_DRAFTING: Mapping[str, Any] = {  # a model's config may ask for these; which of them runs is the peer's choice here
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "assistant_ensemble_weight": None,
    "use_mtp": False,
    "speculation_type": None,
}


def peer_settings(
    target: Target,
    prompt_length: int,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    top_k: int | None = None,
) -> GenerationConfig:
    """The `generation_config` of one answer, without any drafting; its `max_new_tokens` is cut at the context limit.

    Raises ContextLengthError for a prompt that fills the context, UnsupportedSettingError for a model whose config asks
    for what our methods refuse.
    """
    own: GenerationConfig = target.model.generation_config
    if own.stop_strings:
        raise UnsupportedSettingError("the model's generation_config has stop_strings, which peers do not apply")
    room = max_new_tokens if target.context_length is None else target.context_length - prompt_length
    if room < 1:
        raise ContextLengthError(f"the prompt has {prompt_length} tokens, the context {target.context_length}")
    processing = resolve(
        own,
        {"temperature": temperature, "top_p": top_p, "top_k": top_k},
        prompt_length=prompt_length,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids(own),
    )
    settings = copy.deepcopy(own)
    for name, value in _OWN_DRAFTING.items():
        if hasattr(settings, name):  # not all versions know all of them
            setattr(settings, name, value)
    settings.do_sample = not processing.is_greedy
    for name in _WARPERS if processing.is_greedy else ("temperature", "top_k", "top_p"):
        setattr(settings, name, None if processing.is_greedy else getattr(processing, name))
    settings.max_length, settings.max_new_tokens = None, min(max_new_tokens, room)
    if room < max_new_tokens:
        settings.forced_eos_token_id = None  # it stands where the budget ends, beyond the context
    if settings.pad_token_id is None and processing.eos_token_ids:
        settings.pad_token_id = processing.eos_token_ids[0]  # what `generate` does, with a note in the log
    settings.use_cache, settings.return_dict_in_generate = True, False
    return settings


def eos_token_ids(config: GenerationConfig) -> list[int]:
    """The tokens that end an answer."""
    eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else [int(token) for token in eos]


@contextmanager
def generation_config_of(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Give the model another `generation_config` for a while.

    `generate` fills the gaps of what it is given from the model's own, so that None there would not mean "off". And
    with `num_assistant_tokens_schedule="heuristic"` it leaves its last draft length in the model's, so that an answer
    would depend on those before it.
    """
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own
