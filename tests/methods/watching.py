"""A drafter that keeps what it proposed, to be mixed into a method's own."""

from __future__ import annotations

from typing import Any

from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafting, Generation


class Watching:
    """Keeps the drafting at work, and what it proposed after which tokens."""

    def start(self, generation: Generation) -> Drafting:
        self.drafting: Any = super().start(generation)  # type: ignore[misc]
        self.proposals: list[tuple[list[int], DraftTree]] = []
        propose = self.drafting.propose

        def kept() -> DraftTree:
            tree = propose()
            self.proposals.append((list(generation.tokens), tree))
            return tree

        self.drafting.propose = kept
        return self.drafting
