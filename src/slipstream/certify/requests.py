"""The requests that a certificate is made of: greedy, seeded, or one of many samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import GenerationConfig

from slipstream.core.logits import resolve
from slipstream.core.sampling import SamplingSettings
from slipstream.engine.sequence import Request
from slipstream.target.target import Target

GREEDY: Mapping[str, float] = {"temperature": 0.0}


def make_request(
    target: Target,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    settings: Mapping[str, float] = GREEDY,
    sampling: SamplingSettings | None = None,
) -> Request:
    """What `Model.generate` would ask of the engine. settings: `GREEDY` or those of a `Warping`.

    Penalties and the like are those of the model's `generation_config`. Raises UnsupportedSettingError for a config
    that asks for what has no lossless form.
    """
    config: GenerationConfig = target.model.generation_config
    eos = config.eos_token_id
    processing = resolve(
        config,
        dict(settings),
        prompt_length=len(prompt_ids),
        max_new_tokens=max_new_tokens,
        eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
    )
    return Request(prompt_ids=list(prompt_ids), processing=processing, sampling=sampling or SamplingSettings())
