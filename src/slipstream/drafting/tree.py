"""Drafting trees: the skeleton of every drafter that grows them with a model."""

from __future__ import annotations

from collections.abc import Mapping

from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.base import Drafting, Generation, Observed
from slipstream.drafting.expander import Expander
from slipstream.drafting.growth import Frontier, grow
from slipstream.drafting.shape import ShapeInUse
from slipstream.drafting.sizes import Prospect
from slipstream.runtime.clock import Part


class TreeDrafting(Drafting):
    """Grows a tree of the shape in use under each root, from an expander's logits."""

    def __init__(self, expander: Expander, shape: ShapeInUse, generation: Generation) -> None:
        self.expander, self._shape, self._generation = expander, shape, generation
        self._nothing = empty_tree(generation.target.device)

    def propose(self) -> DraftTree:
        if not self.expander.is_ready():
            return self._nothing
        shape = self._shape.next()
        if shape is None:  # decoding plainly is faster; what is pending stays so
            return self._nothing
        shape = shape.cut(self._generation.max_depth)
        shape = shape.cut(self.expander.begin(shape))
        return grow(self._children, self._generation.root, shape)

    def prospect(self) -> Prospect | None:
        """What a draft of the next cycle is expected to bring and take; None: that is still to be found out."""
        return self._shape.prospect()

    def price(self, tree: DraftTree) -> float:
        """Of a cycle that drafted this tree, in plain ones."""
        return self._shape.price(tree)

    def observe(self, observed: Observed) -> None:
        self.expander.catch_up(observed)
        self._shape.record_tree(observed)

    def end_cycle(self, seconds: Mapping[Part, float]) -> None:
        self._shape.record_times(seconds)

    def _children(self, frontier: Frontier, k: int) -> Candidates:
        answer = self.expander.expand(frontier)
        return answer.children(self._generation.rule, frontier.depth + 1, k, frontier.tokens.shape[0])
