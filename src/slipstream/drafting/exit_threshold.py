"""The early exit of a draft chain: drafting stops once the drafter is unsure of a token.

The adaptive threshold is Draft & Verify's (Zhang et al. 2024, arXiv 2309.08168, section 3.3); every drafter that draws
its chain token by token can stop by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slipstream.core.rules import DecodingRule
from slipstream.core.tree import DraftTree, chain
from slipstream.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettings:
    """A draft chain and its exit rule. Defaults are those of Draft & Verify's published runs."""

    length: int = 12
    """Tokens drafted at most (K in the paper)."""
    threshold: float = 0.6
    """First value of gamma: drafting stops after a token whose draft probability is below it. 0: never."""
    adaptive: bool = True
    """Steer gamma towards `target_acceptance` after every verification; it is carried over from prompt to prompt."""
    target_acceptance: float = 0.9
    """Acceptance rate aimed at (alpha)."""

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or self.length < 1:
            raise InputError(f"chain length is {self.length!r}; it must be at least 1, a whole number")
        if not isinstance(self.adaptive, bool):
            raise InputError(f"chain adaptive is {self.adaptive!r}; it must be true or false")
        for name in ("threshold", "target_acceptance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise InputError(f"chain {name} is {value!r}; it must lie from 0 to 1")


@dataclass(slots=True)
class AdaptiveThreshold:
    """The exit threshold gamma and its published update (section 3.3; constants of the released runs)."""

    settings: ChainSettings
    gamma: float = field(init=False)
    acceptance: float = 0.0
    """Moving average of accepted / drafted in the generation at hand; starts at 0, as in the released code."""

    _STEP = 0.01
    _KEEP_ACCEPTANCE = 0.5
    _KEEP_GAMMA = 0.9

    def __post_init__(self) -> None:
        self.gamma = self.settings.threshold

    def update(self, num_accepted: int, num_drafted: int) -> None:
        """Move gamma up when too little was accepted, down otherwise; not down after a draft of full length."""
        if not self.settings.adaptive or num_drafted == 0:
            return
        rate = num_accepted / num_drafted
        self.acceptance = self._KEEP_ACCEPTANCE * self.acceptance + (1 - self._KEEP_ACCEPTANCE) * rate
        if self.acceptance < self.settings.target_acceptance:
            step = self._STEP
        elif num_drafted < self.settings.length:
            step = -self._STEP
        else:
            return  # the draft was never unsure: a lower threshold could not have made it longer
        moved = min(max(self.gamma + step, 0.0), 1.0)
        self.gamma = self._KEEP_GAMMA * self.gamma + (1 - self._KEEP_GAMMA) * moved


def draft_chain(
    logits_after: Callable[[Tensor, int], Tensor], rule: DecodingRule, root: Tensor, length: int, gamma: float
) -> DraftTree:
    """Draft `length` tokens (at least 1) after `root` ([1] int64), or fewer: until one is less probable than gamma.

    logits_after: (token [1], its depth, 0 for the root) -> the drafter's logits after it, [1, vocab]. With gamma above
    0 the device is asked for each token's confidence: the one stated exception to "no waiting inside a cycle".
    """
    token, drawn = root, []
    for depth in range(length):
        drawn.append(rule.draw(logits_after(token, depth), depth + 1))
        token = drawn[-1].token
        if gamma > 0 and math.exp(drawn[-1].log_confidence.item()) < gamma:
            break  # the unsure token stays in the draft: leaving it out would bias sampled drafts
    qs = [one.q for one in drawn if one.q is not None]
    return chain(
        torch.cat([one.token for one in drawn]),
        torch.cat([one.log_confidence for one in drawn]),
        torch.cat(qs) if qs else None,
    )
