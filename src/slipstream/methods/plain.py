"""No drafting: every cycle of the engine is one step of plain decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.base import Drafter, Drafting, Run
from slipstream.methods.method import Method
from slipstream.target.target import Target


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


def _build(target: Target, options: Mapping[str, Any]) -> Drafter:
    return PlainDrafter()


METHOD = Method(
    name="plain",
    summary="no drafting: plain decoding on the same engine, the baseline",
    needs="nothing",
    paper="-",
    options=(),
    build=_build,
)
