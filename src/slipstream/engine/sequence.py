"""One request on the host: what it asks for, the text so far, and where its answer ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from slipstream.core.logits import ProcessingSettings
from slipstream.core.logprobs import TokenLogprobs
from slipstream.core.sampling import SamplingSettings
from slipstream.errors import ContextLengthError, InputError
from slipstream.runtime.clock import Part
from slipstream.target.target import Target

FinishReason = Literal["eos", "stop", "length", "context", "error"]
"""Why a generation ended: an end-of-sequence token, a stop string, the token budget, the context limit; or an error,
which only `Engine.step` reports so."""


class Stopper(Protocol):
    """Watches the emitted tokens, all of them, for a stop string."""

    def append_token(self, token: int) -> bool:
        """Take the next emitted token; true if the text so far completes a stop string."""


@dataclass(frozen=True, slots=True)
class DraftTrace:
    """The draft of one cycle on the host, for those who show it."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    """Of each token, an index into `tokens`; -1: the root."""
    path: tuple[int, ...]
    """Indices of the tokens that were kept, from the root on, after all cuts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation: what to continue, how to choose tokens, when to stop."""

    prompt_ids: Sequence[int]
    processing: ProcessingSettings
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stopper: Stopper | None = None
    logprobs: int | None = None
    """Report every token's log-probability and this many of the likeliest tokens' (`Step.logprobs`); None: do not."""
    trace: bool = False
    """Report each cycle's draft (`Step.draft`), which costs a second copy to the host."""

    @property
    def max_new_tokens(self) -> int:
        return self.processing.max_length - len(self.prompt_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One draft-verify cycle."""

    token_ids: tuple[int, ...]
    """Tokens emitted, after all cuts."""
    num_drafted: int
    """Nodes that the target verified."""
    num_accepted: int
    """Drafted tokens among those emitted."""
    num_scouts: int = 0
    """Rows of the target's pass beside the root and the draft, from which the drafter learns."""
    prefill_s: float = 0.0
    """Seconds spent on the prompt; not 0 only in the first step."""
    draft_s: float = 0.0
    """Seconds of the cycle in the drafter (for all five parts: `slipstream.runtime.clock`)."""
    build_s: float = 0.0
    """Seconds to build the rows, positions and masks of the target's pass."""
    verify_s: float = 0.0
    """Seconds of the target's pass."""
    sample_s: float = 0.0
    """Seconds to process logits, choose at every node and walk, up to the cycle's one copy to the host."""
    host_s: float = 0.0
    """Seconds of the cycle outside all these: cuts, commit, what the drafter observes."""
    finish_reason: FinishReason | None = None
    """Set in the last step."""
    text: str = ""
    """Text that became final in this step; filled in by `Model.stream`."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids` where the request asks for them. They are the model's own: of its logits before
    temperature, truncation and penalties."""
    draft: DraftTrace | None = None
    """The cycle's draft, where the request asks for traces."""
    error: BaseException | None = None
    """What ended the sequence, where `finish_reason` is "error". Its traceback keeps the cache in memory: do not keep
    the step for long."""

    @classmethod
    def timed(
        cls,
        seconds: Mapping[Part, float],
        prefill_s: float,
        token_ids: Sequence[int],
        num_drafted: int,
        num_accepted: int,
        num_scouts: int,
        finish_reason: FinishReason | None,
        logprobs: tuple[TokenLogprobs, ...],
    ) -> Step:
        """The step of a cycle that took so many seconds, by part."""
        return cls(
            token_ids=tuple(token_ids),
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            num_scouts=num_scouts,
            prefill_s=prefill_s,
            draft_s=seconds["draft"],
            build_s=seconds["build"],
            verify_s=seconds["verify"],
            sample_s=seconds["sample"],
            host_s=seconds["host"],
            finish_reason=finish_reason,
            logprobs=logprobs,
        )

    @classmethod
    def failed(cls, error: BaseException) -> Step:
        """The last step of a sequence that an error has ended."""
        return cls(token_ids=(), num_drafted=0, num_accepted=0, finish_reason="error", error=error)


class TokenSequence:
    """The text of a request as it grows: prompt and answer. The last token is the root of the next cycle."""

    def __init__(self, request: Request, target: Target) -> None:
        """Raises InputError for an empty prompt or budget, ContextLengthError for a prompt that fills the context."""
        check_request(request, target)
        self.request, self.tokens = request, list(request.prompt_ids)
        self.finish_reason: FinishReason | None = None
        self._family, self._context = target.family, target.context_length

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted, by the budget and by the context."""
        budget = self.request.processing.max_length
        return (budget if self._context is None else min(budget, self._context)) - len(self.tokens)

    @property
    def room(self) -> int:
        """Depth worth drafting: a cycle emits at most depth + 1 tokens, and no pass may exceed the target's reach."""
        length = len(self.tokens)
        room, reach = self.remaining - 1, self._family.reach(length)
        return room if reach is None else min(room, max(0, reach - length))

    def cut(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that plain decoding would have emitted before it stopped; sets `finish_reason` where it stops."""
        remaining = self.remaining
        for count, token in enumerate(tokens, start=1):
            self.finish_reason = self._ends_with(token, is_last=count == remaining)
            if self.finish_reason is not None:
                return list(tokens[:count])
        return list(tokens)

    def _ends_with(self, token: int, *, is_last: bool) -> FinishReason | None:
        """Why the answer ends with its next token. is_last: whether there is no room for another."""
        stopped = self.request.stopper is not None and self.request.stopper.append_token(token)
        if token in self.request.processing.eos_token_ids:
            return "eos"
        if stopped:
            return "stop"
        if not is_last:
            return None
        at_budget = len(self.tokens) + self.remaining == self.request.processing.max_length
        return "length" if at_budget else "context"


def check_request(request: Request, target: Target) -> None:
    """Refuse a request that cannot be served, before any work is done."""
    if len(request.prompt_ids) == 0:
        raise InputError("the prompt is empty; give at least one token")
    if request.max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {request.max_new_tokens}; it must be at least 1")
    out_of_range = next((t for t in request.prompt_ids if not 0 <= t < target.vocab_size), None)
    if out_of_range is not None:
        raise InputError(f"token id {out_of_range} is not in the target's vocabulary of {target.vocab_size}")
    if target.context_length is not None and len(request.prompt_ids) >= target.context_length:
        raise ContextLengthError(
            f"the prompt has {len(request.prompt_ids)} tokens, but the target's context is {target.context_length}; "
            f"shorten the prompt to at most {target.context_length - 1} tokens"
        )
    _check_logprobs(request.logprobs, target.vocab_size)


def _check_logprobs(count: int | None, vocab_size: int) -> None:
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= vocab_size:
        raise InputError(f"logprobs is {count!r}; it must be a whole number from 0 to {vocab_size}, or None for none")
