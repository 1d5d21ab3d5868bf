"""Comparisons of skip sets on accepted text: one batched pass each, in draft slots, nothing committed touched.

The accepted tokens' exact KV is in the cache, so all of them can be put to a candidate at once: each row sees the
committed tokens before its own and itself as the candidate sees it, just as the first row of a draft does. What the
candidate says is compared with the token that the target chose there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slipstream.methods.layer_skip.adapt import FEWEST_ROWS, AdaptiveSkipSet, ComparisonResult
from slipstream.skipping.plan import SkipPlan
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers

if TYPE_CHECKING:
    from slipstream.drafting.base import Generation

_PER_WINDOW = 4  # candidates tried on the same tokens
_MISSED = -6.0  # a token of lower log-probability is not drafted, however low
_VARIANCE_FLOOR = 1e-4
_CORRELATED = 2.0  # neighbouring tokens are alike, so their mean is less sure than independent ones'


@torch.inference_mode()
def score_tokens(generation: Generation, plan: SkipPlan, first: int, end: int, num_children: int) -> Tensor:
    """[2, end - first]: scores, and whether the next token was among the `num_children` most probable (1.0 or 0.0).

    Tokens first .. end - 1 are run with the sub-layers of `plan` left out; each is to foresee the one after it. Draft
    slots are written, no others. A token of probability above 1 / (num_children + 1) is among the children for certain,
    so its score is cut off there.
    """
    cache, length, device = generation.cache, generation.length, generation.target.device
    tokens = torch.tensor(generation.tokens[first : end + 1], device=device)
    rows = torch.arange(end - first, device=device)
    before = rows[:, None] > torch.arange(length - first, device=device)[None]  # [n, length - first]
    visible = torch.cat((before, torch.eye(end - first, dtype=torch.bool, device=device)), dim=1)
    cache.rollback(first)  # for the mask's sake: rows may not see the committed tokens after them
    try:
        output = generation.target.forward(tokens[:-1], first + rows, visible, cache, start=length, instead=plan.model)
    finally:
        cache.commit(None, length - first)
    log_q = output.logits[0].log_softmax(dim=-1)  # [n, vocab]
    taken = log_q.gather(1, tokens[1:, None])  # [n, 1]
    scores = taken[:, 0].clamp(min=_MISSED, max=-math.log(num_children + 1))
    hits = (log_q > taken).sum(dim=1) < num_children
    return torch.stack((scores, hits.to(scores.dtype)))


@dataclass(frozen=True, slots=True)
class _Window:
    """Tokens on which sets are compared, and how the set in use did on them."""

    first: int
    end: int
    base: SkipSet
    scores: Tensor  # [2, n]


class Comparisons:
    """The comparisons of one generation: at most one pass before a cycle's drafting, read before the next one's."""

    def __init__(
        self,
        adaptive: AdaptiveSkipSet,
        sublayers: SubLayers,
        generation: Generation,
        adapt_to: Callable[[SkipSet], None],
    ) -> None:
        """adapt_to: takes a set into use."""
        self._adaptive, self._sublayers, self._generation, self._adapt_to = adaptive, sublayers, generation, adapt_to
        self._window: _Window | None = None
        self._num_tried = 0
        self._pending: tuple[SkipSet, SkipSet, Tensor] | None = None  # candidate, base, [3] result on the device

    def advance(self) -> None:
        """Read the last comparison, and make another if one is due."""
        self._learn()
        first, end = self._next_window()
        if end - first < FEWEST_ROWS or not self._adaptive.can_afford_comparison():
            return
        current = self._adaptive.current
        if self._window is None or self._window.base is not current or self._num_tried == _PER_WINDOW:
            self._window = _Window(first, end, current, self._score(current, first, end))
            self._num_tried = 0
        else:
            self._try_candidate(self._window)

    def _next_window(self) -> tuple[int, int]:
        """The newest tokens whose successors the target chose."""
        end = self._generation.length
        return max(self._generation.prompt_length - 1, end - self._adaptive.settings.trial_rows), end

    def _score(self, skip_set: SkipSet, first: int, end: int) -> Tensor:
        with self._adaptive.lock:
            self._adaptive.pay(skip_set, end - first)
        return score_tokens(self._generation, self._sublayers.plan(skip_set), first, end, self._adaptive.num_children)

    def _try_candidate(self, window: _Window) -> None:
        with self._adaptive.lock:
            candidate = self._adaptive.candidate()
        self._num_tried += 1
        if candidate is None:
            return
        difference, hits = self._score(candidate, window.first, window.end) - window.scores  # [n] each
        variance = _CORRELATED * difference.var() / difference.shape[0] + _VARIANCE_FLOOR
        self._pending = (candidate, window.base, torch.stack((difference.mean(), variance, hits.mean())))

    def _learn(self) -> None:
        """Learn from the last comparison: by now the device has long finished it."""
        if self._pending is None:
            return
        (candidate, base, result), self._pending = self._pending, None
        difference, variance, hits = result.tolist()
        learnt = ComparisonResult(difference=difference, variance=variance, hits=hits)
        with self._adaptive.lock:
            before = self._adaptive.current
            self._adaptive.learn(candidate, base, learnt)
            if self._adaptive.current is not before:
                self._adapt_to(self._adaptive.current)
