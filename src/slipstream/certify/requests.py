"""The requests that a certificate is made of: greedy, seeded, or one of many samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from transformers import GenerationConfig

from slipstream.core.logits import resolve
from slipstream.core.sampling import SamplingSettings
from slipstream.engine.sequence import Request
from slipstream.errors import InputError
from slipstream.target.target import Target

_OFF: dict[str, float] = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Warping:
    """Which distribution is sampled; by default the target's own at temperature 1, whatever its config says."""

    temperature: float = 1.0
    """Above 0."""
    top_k: int = 0
    """0 keeps all tokens."""
    top_p: float = 1.0
    """1 keeps all tokens."""
    min_p: float = 0.0
    """0 keeps all tokens."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature:g}; a certificate samples at one above 0")

    def settings(self) -> dict[str, float]:
        """For `logits.resolve`: these, and all other truncations off."""
        return {**asdict(self), **_OFF}


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
