"""No drafting: every cycle of the engine is one step of plain decoding."""

from __future__ import annotations

from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.base import Drafter, Drafting, Run


class PlainDrafter(Drafter):
    """Proposes nothing."""

    name = "plain"

    def start(self, run: Run) -> Drafting:
        return _Nothing(run)

    @property
    def draft_slots(self) -> int:
        return 1


class _Nothing(Drafting):
    def __init__(self, run: Run) -> None:
        self._empty = empty_tree(run.target.device)

    def propose(self) -> DraftTree:
        return self._empty
