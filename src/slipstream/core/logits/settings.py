"""What plain decoding would do to the target's logits in one generation, and the values each setting may take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from slipstream.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessingSettings:
    """The settings of one generation; the defaults leave the logits alone and decode greedily."""

    prompt_length: int
    """Tokens of the prompt."""
    max_length: int
    """Tokens of prompt and answer together at which the budget ends; `forced_eos_token_id` counts from it."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer."""
    temperature: float = 0.0
    """0 decodes greedily; otherwise logits are divided by it."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as probable as the most probable one; 0 keeps all."""
    top_h: float | None = None
    """Keep the most probable tokens that carry this fraction of the entropy; unset keeps all."""
    typical_p: float = 1.0
    """Keep the locally typical tokens whose probability reaches this; 1 keeps all."""
    epsilon_cutoff: float = 0.0
    """Drop tokens less probable than this; 0 keeps all."""
    eta_cutoff: float = 0.0
    """Drop tokens less probable than a cut-off that adapts to the entropy; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer so far become less likely; 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token the answer already has (OpenAI's definition); 0 is off."""
    frequency_penalty: float = 0.0
    """Subtracted once for every time the answer already has the token (OpenAI's definition); 0 is off."""
    no_repeat_ngram_size: int = 0
    """No run of this many tokens may occur twice; 0 is off."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that may not occur."""
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    """Pairs of a token sequence and what is added to the logit of its last token where it would be completed."""
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that may not occur."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Tokens that may not begin the answer."""
    forced_bos_token_id: int | None = None
    """The second token of the text, where the prompt is a single one."""
    forced_eos_token_id: tuple[int, ...] = ()
    """The last token when the budget is used up; several share the choice."""
    min_length: int = 0
    """No end of text before prompt and answer together have this many tokens."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """(start, factor): from `start` answer tokens on, the end of text becomes exponentially more likely."""
    remove_invalid_values: bool = False
    """Replace nan and infinite logits."""
    renormalize_logits: bool = False
    """End with a log-softmax."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            limit.check(name, getattr(self, name))
        if self.exponential_decay_length_penalty is not None and not self.eos_token_ids:
            raise InputError("exponential_decay_length_penalty needs an end-of-text token, and the model names none")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """The values a numeric setting may take."""

    words: str
    low: float = -math.inf
    high: float = math.inf
    low_excluded: bool = False
    whole: bool = False
    least: float = 0.0
    """Of the values other than 0."""

    def check(self, name: str, value: object) -> None:
        if value is None:
            return
        kinds = (int,) if self.whole else (int, float)
        inside = isinstance(value, kinds) and not isinstance(value, bool) and self._holds(float(value))
        if not inside:
            raise InputError(f"{name} is {value!r}; it must be {self.words}")

    def _holds(self, value: float) -> bool:
        above = value > self.low if self.low_excluded else value >= self.low
        return math.isfinite(value) and above and value <= self.high and (value == 0 or abs(value) >= self.least)


_COUNT = Limit("a whole number, 0 or more", low=0, whole=True)
LIMITS: Mapping[str, Limit] = {
    "prompt_length": _COUNT,
    "max_length": _COUNT,
    # Nearer to 0 the quotients of float32 logits may overflow; what is most probable is chosen long before.
    "temperature": Limit("0 (greedy) or a number of at least 1e-30", low=0, least=1e-30),
    "top_k": Limit("0 (off) or a positive count of tokens", low=0, whole=True),
    "top_p": Limit("a number from 0 to 1 (off)", low=0, high=1),
    "min_p": Limit("a number from 0 (off) to 1", low=0, high=1),
    "top_h": Limit("a number above 0 and up to 1", low=0, high=1, low_excluded=True),
    "typical_p": Limit("a number above 0 and up to 1 (off)", low=0, high=1, low_excluded=True),
    "epsilon_cutoff": Limit("a number from 0 (off) to 1", low=0, high=1),
    "eta_cutoff": Limit("a number from 0 (off) to 1", low=0, high=1),
    "repetition_penalty": Limit("a positive number (1 is off)", low=0, low_excluded=True),
    "presence_penalty": Limit("a finite number (0 is off)"),
    "frequency_penalty": Limit("a finite number (0 is off)"),
    "no_repeat_ngram_size": Limit("0 (off) or a positive count of tokens", low=0, whole=True),
    "min_length": _COUNT,
}
