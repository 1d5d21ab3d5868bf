"""A model and the text itself as drafters of one generation: each cycle is drafted by the one that promises more.

What prompt lookup would draft is known, with its worth, before a pass: it costs no time to ask. What the model's tree
brings and takes is known on average, from measured costs and from what was accepted (`drafting/sizes.py`). Both worths
are tokens beyond those that the same time would bring otherwise. The model observes every token whoever drafted it, so
it takes up the text where the lookup left it, in one pass over its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafter, Drafting, Generation, Observed
from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.tree import TreeDrafting
from slipstream.methods.prompt_lookup import Lookup, PromptLookupDrafter
from slipstream.runtime.clock import Part

_CLEAR_WORTH = 1.0  # tokens that a lookup must be worth to go before a model of which nothing is known yet


class HybridDrafter(Drafter):
    """A drafter with a model whose trees are sized by cost, and prompt lookup beside it."""

    def __init__(self, model: ModelDrafter) -> None:
        self.model, self.lookup = model, PromptLookupDrafter()
        self.name = f"{model.name}+{self.lookup.name}"
        self.features, self.confidence = model.features, model.confidence

    def start(self, generation: Generation) -> Drafting:
        model, lookup = self.model.start(generation), self.lookup.start(generation)
        assert isinstance(model, TreeDrafting)
        return _Hybrid(model, lookup)

    @property
    def varies(self) -> bool:
        return True  # who drafts is decided by cost

    @property
    def draft_slots(self) -> int:
        return max(self.model.draft_slots, self.lookup.draft_slots)


def with_lookup(drafter: Drafter) -> Drafter:
    """The drafter with prompt lookup beside it, if both can be weighed: if it sizes its trees by cost."""
    return HybridDrafter(drafter) if isinstance(drafter, ModelDrafter) and drafter.shape.by_cost else drafter


def drafting_model(drafter: Drafter) -> ModelDrafter | None:
    """The drafter with a model, alone or beside prompt lookup; None: it has none."""
    alone = drafter.model if isinstance(drafter, HybridDrafter) else drafter
    return alone if isinstance(alone, ModelDrafter) else None


class _Hybrid(Drafting):
    def __init__(self, model: TreeDrafting, lookup: Lookup) -> None:
        self._model, self._lookup = model, lookup
        self._models_turn = False

    def propose(self) -> DraftTree:
        self._lookup.look_up()
        self._models_turn = self._lookup.worth <= self._worth_of_model()
        if not self._models_turn:
            return self._lookup.draft()
        tree = self._model.propose()
        self._lookup.leave_to(self._model.price(tree))
        return tree

    def observe(self, observed: Observed) -> None:
        if self._models_turn or observed.tree is None:
            self._model.observe(observed)
        else:
            self._model.expander.catch_up(observed)

    def end_cycle(self, seconds: Mapping[Part, float]) -> None:
        if self._models_turn:
            self._model.end_cycle(seconds)

    def _worth_of_model(self) -> float:
        prospect = self._model.prospect()
        return _CLEAR_WORTH if prospect is None else prospect.worth(self._lookup.pace)
