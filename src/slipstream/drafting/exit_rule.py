"""When a draft chain ends: at a length, or once the drafter is unsure of a token.

The adaptive threshold is Draft & Verify's (Zhang et al. 2024, arXiv 2309.08168, section 3.3); the heuristic length is
that of transformers' assisted generation.
"""

from __future__ import annotations

from copy import copy

_STEP = 0.01
_KEEP_ACCEPTANCE = 0.5
_KEEP_GAMMA = 0.9
_FIRST_LENGTH, _LONGER, _SHORTER = 5, 2, 1  # of the heuristic


class ExitRule:
    """Length and threshold of a drafter's chains, and what verified chains teach of them.

    Both are carried over from prompt to prompt; the average of acceptance belongs to one generation.
    """

    def __init__(
        self, longest: int, gamma: float, target_acceptance: float | None = None, *, heuristic: bool = False
    ) -> None:
        """longest: tokens of a chain at most. gamma: it ends after a token of lower draft probability; 0: never.
        target_acceptance: move gamma towards this acceptance rate (alpha); None: it stays. heuristic: steer the length.
        """
        self.gamma, self.acceptance = gamma, 0.0
        self.steered_length = ChainLength(longest, heuristic=heuristic)
        self._longest, self._target = longest, target_acceptance
        self._carried = self

    @property
    def length(self) -> int:
        """Tokens of the next chain at most."""
        return self.steered_length.current

    def for_generation(self) -> ExitRule:
        """The rule of a new generation: it starts with what those before it have learnt, and passes on what it learns.

        The average of acceptance starts at 0, as in the released code.
        """
        own = copy(self)  # shares the length
        own.acceptance = 0.0
        return own

    def learn(self, num_accepted: int, num_drafted: int) -> None:
        """Take in a verified chain. An empty one says nothing."""
        if num_drafted == 0:
            return
        self._move_gamma(num_accepted, num_drafted)
        self._carried.gamma = self.gamma
        self.steered_length.learn(num_accepted, num_drafted)

    def _move_gamma(self, num_accepted: int, num_drafted: int) -> None:
        """Up when too little was accepted, down otherwise; not down after a draft of full length."""
        if self._target is None:
            return
        rate = num_accepted / num_drafted
        self.acceptance = _KEEP_ACCEPTANCE * self.acceptance + (1 - _KEEP_ACCEPTANCE) * rate
        if self.acceptance < self._target:
            step = _STEP
        elif num_drafted < self._longest:
            step = -_STEP
        else:
            return  # the draft was never unsure: a lower threshold could not have made it longer
        moved = min(max(self.gamma + step, 0.0), 1.0)
        self.gamma = _KEEP_GAMMA * self.gamma + (1 - _KEEP_GAMMA) * moved


class ChainLength:
    """Tokens of a chain at most: always the same, or 2 more after a whole chain was kept and else 1 fewer."""

    def __init__(self, longest: int, *, heuristic: bool) -> None:
        self._longest, self._heuristic = longest, heuristic
        self.current = min(_FIRST_LENGTH, longest) if heuristic else longest

    def learn(self, num_accepted: int, num_drafted: int) -> None:
        """Take in a verified chain. One that ended early and was kept says nothing about the length."""
        if not self._heuristic or num_accepted == num_drafted < self.current:
            return
        moved = self.current + _LONGER if num_accepted == num_drafted else self.current - _SHORTER
        self.current = min(max(moved, 1), self._longest)
