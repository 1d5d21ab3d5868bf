"""Drafting trees: the skeleton of every drafter that grows them with a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.base import Drafting, Generation, Observed
from slipstream.drafting.expander import Expander
from slipstream.drafting.growth import Frontier, grow
from slipstream.drafting.shape import ShapeInUse, Tree
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
        return self._grown(shape)

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

    def _grown(self, shape: Tree) -> DraftTree:
        """Grow a tree, as one stage of the cycle where that is possible."""
        rule, stage = self._generation.rule, self.expander.stage()
        if stage is None or rule.key is None or not shape.is_plain:
            return grow(self._children, self._generation.root, shape)
        inputs = rule.inputs(shape.depth)

        def work(root: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            stage.take(*tensors[len(inputs) :])
            with rule.reading(tensors[: len(inputs)]):
                tree = grow(self._children, root, shape)
            return tree.tokens, tree.parents, tree.depth, tree.log_value

        tensors = (self._generation.root, *inputs, *stage.tensors)
        key = "draft", stage.key, shape, rule.key
        grown: Any = stage.executor.stage(key, work, tensors, stage.cache, shape.most_rows)
        tokens, parents, depth, log_value = grown
        return DraftTree(tokens, parents, depth, log_value, shape.depth)

    def _children(self, frontier: Frontier, k: int) -> Candidates:
        answer = self.expander.expand(frontier)
        return answer.children(self._generation.rule, frontier.depth + 1, k, frontier.tokens.shape[0])
