"""What a generation returns: the answer and how it came about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from slipstream.core.logprobs import TokenLogprobs
from slipstream.engine.sequence import FinishReason, Step
from slipstream.runtime.clock import PARTS

_PART_NAMES = tuple(f"{part}_s" for part in PARTS)
_SUMMED_APART = ("accept_lengths", "plain_s")


@dataclass(slots=True, kw_only=True)
class Stats:
    """Counts and times of one generation, or of several added up."""

    num_tokens: int = 0
    """Tokens emitted."""
    num_cycles: int = 0
    """Draft-verify passes of the target; plain decoding needs one a token."""
    num_drafted: int = 0
    """Drafted nodes that the target verified."""
    num_accepted: int = 0
    """Drafted tokens among those emitted."""
    accept_lengths: list[int] = field(default_factory=list)
    """Histogram: entry k counts the cycles that emitted k tokens."""
    prefill_s: float = 0.0
    draft_s: float = 0.0
    build_s: float = 0.0
    verify_s: float = 0.0
    sample_s: float = 0.0
    host_s: float = 0.0
    total_s: float = 0.0
    """Wall time, prefill included; not the time that the consumer of a stream took between steps."""
    plain_s: float | None = None
    """Estimate of the seconds that plain decoding would have taken instead of the cycles; None where too little is
    known."""

    @classmethod
    def of(cls, steps: Iterable[Step], total_s: float, plain_s: float | None = None) -> Stats:
        """The statistics of a generation's steps."""
        stats = cls(total_s=total_s, plain_s=plain_s)
        for step in steps:
            stats.count(step)
        return stats

    def count(self, step: Step) -> None:
        """Add one cycle."""
        emitted = len(step.token_ids)
        self.num_tokens += emitted
        self.num_cycles += 1
        self.num_drafted += step.num_drafted
        self.num_accepted += step.num_accepted
        self.accept_lengths.extend([0] * (emitted + 1 - len(self.accept_lengths)))
        self.accept_lengths[emitted] += 1
        self.prefill_s += step.prefill_s
        for name in _PART_NAMES:
            setattr(self, name, getattr(self, name) + getattr(step, name))

    def __add__(self, other: Stats) -> Stats:
        longer, shorter = sorted((self.accept_lengths, other.accept_lengths), key=len, reverse=True)
        summed = [count + (shorter[k] if k < len(shorter) else 0) for k, count in enumerate(longer)]
        plain = {name: getattr(self, name) + getattr(other, name) for name in asdict(self) if name not in _SUMMED_APART}
        estimates = [one.plain_s for one in (self, other) if one.num_cycles]
        plain_s = None if None in estimates or not estimates else sum(filter(None, estimates))
        return Stats(accept_lengths=summed, plain_s=plain_s, **plain)

    @property
    def tau(self) -> float:
        """Tokens emitted per draft-verify pass; 1 for plain decoding."""
        return self.num_tokens / self.num_cycles if self.num_cycles else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 where nothing was drafted. Of a tree at most one path can be accepted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    @property
    def passes_saved(self) -> float:
        """Share of plain decoding's target passes that were not needed."""
        return 1.0 - self.num_cycles / self.num_tokens if self.num_tokens else 0.0

    @property
    def cycles_s(self) -> float:
        """Seconds of all cycles, prefill left out."""
        return self.draft_s + self.build_s + self.verify_s + self.sample_s + self.host_s

    @property
    def speedup(self) -> float | None:
        """Estimate of the cycles' speed over plain decoding's, prefill left out: below 1 is a loss. None: not known."""
        return None if self.plain_s is None or not self.cycles_s else self.plain_s / self.cycles_s

    def cycle_ms(self) -> dict[str, float]:
        """Milliseconds of a mean cycle, by part (`slipstream.runtime.clock`)."""
        return {part: 1000 * getattr(self, f"{part}_s") / max(1, self.num_cycles) for part in PARTS}

    @property
    def tokens_per_second(self) -> float:
        """Tokens emitted per second of wall time, prefill included."""
        return self.num_tokens / self.total_s if self.total_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All counts, times and figures, for JSON."""
        figures = ("tau", "acceptance_rate", "passes_saved", "tokens_per_second", "cycles_s", "speedup")
        return asdict(self) | {name: getattr(self, name) for name in figures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One answer."""

    text: str
    """Without special tokens and, if a stop string ended it, up to where that begins. Empty without a tokenizer."""
    token_ids: list[int]
    """All tokens emitted, the end-of-sequence token or the tokens of a stop string included."""
    prompt_ids: list[int]
    finish_reason: FinishReason
    seed: int | None
    """The seed that was used; None when decoding greedily."""
    stats: Stats
    logprobs: list[TokenLogprobs] | None = None
    """One for each of `token_ids`, under the model's own distribution; None where they were not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON. Log-probabilities are in it where they were asked for."""
        record = asdict(self) | {"stats": self.stats.to_dict()}
        if self.logprobs is None:
            del record["logprobs"]
        return record
