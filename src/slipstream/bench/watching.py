"""A drafter whose verified trees are kept, to be looked at once the answer is there. It changes no token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafter, Drafting, ForwardingDrafting, Generation, Observed


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle drafted, and what the target said to it."""

    root: int
    """The token under which the tree was drafted."""
    tree: DraftTree
    choice: Tensor  # [n + 1] the target's next token at the root and every node
    path: tuple[int, ...]
    """Nodes kept, after cuts by the end of the answer."""


class WatchedDrafter(Drafter):
    """Another drafter at its usual work. Only references are kept, so the clock notices nothing."""

    def __init__(self, inner: Drafter) -> None:
        self.inner, self.name = inner, inner.name
        self.features, self.confidence = inner.features, inner.confidence
        self._cycles: list[Cycle] = []

    def take(self) -> list[Cycle]:
        """The cycles since this was last asked, in order."""
        cycles, self._cycles = self._cycles, []
        return cycles

    def start(self, generation: Generation) -> Drafting:
        return _WatchedDrafting(self.inner.start(generation), self._keep_cycle)

    @property
    def draft_slots(self) -> int:
        return self.inner.draft_slots

    def _keep_cycle(self, cycle: Cycle) -> None:
        self._cycles.append(cycle)


class _WatchedDrafting(ForwardingDrafting):
    def __init__(self, inner: Drafting, note: Callable[[Cycle], None]) -> None:
        super().__init__(inner)
        self._keep_cycle = note

    def observe(self, observed: Observed) -> None:
        if observed.tree is not None and observed.choice is not None:
            self._keep_cycle(Cycle(observed.tokens[0], observed.tree, observed.choice, tuple(observed.path)))
        super().observe(observed)
