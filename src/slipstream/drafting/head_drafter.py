"""What drafters with a head on the target's features share: a tree of fixed size, or one sized by measured cost."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import torch

from slipstream.core.rules import GreedyRule
from slipstream.core.tree import empty_tree
from slipstream.drafting.auto_shape import AutoShape
from slipstream.drafting.base import Drafter, Drafting, Observed, Run
from slipstream.drafting.default_shape import default_shape
from slipstream.drafting.growth import TreeShape
from slipstream.drafting.medusa_trees import DEFAULT, TREES, published_tree
from slipstream.drafting.static_tree import StaticTree
from slipstream.errors import InputError, unknown_choice
from slipstream.runtime.costs import Costs, measure_costs
from slipstream.target.target import Target


class HeadDrafter(Drafter):
    """A drafter whose tree is dynamic, static, or dynamic and sized by measured cost."""

    target: Target
    shape: TreeShape | StaticTree | AutoShape

    @abstractmethod
    def begin(self, run: Run) -> Drafting:
        """Take part in a new generation."""

    def start(self, run: Run) -> Drafting:
        if isinstance(self.shape, AutoShape) and self.shape.costs is None:
            self.shape.costs = self.measure(self.shape.largest)
        return self.begin(run)

    @torch.inference_mode()
    def measure(self, largest: TreeShape) -> Costs:
        """What verifying and drafting cost for trees up to `largest`."""
        device = self.target.device
        fixed = copy(self)
        fixed.shape = largest
        run = Run(self.target, self.target.new_cache(0), GreedyRule(), [0] * 32, 32)
        drafting = fixed.begin(run)
        feature = torch.zeros(1, self.target.config.hidden_size, dtype=self.target.dtype, device=device)
        committed = Observed(tokens=[0], features=feature, tree=empty_tree(device))  # one token a cycle

        def draft(levels: int) -> None:
            run.max_depth = levels
            drafting.observe(committed)
            drafting.propose()

        return measure_costs(self.target, 1 + largest.total, largest.depth, draft)

    @property
    def largest(self) -> TreeShape | StaticTree:
        """The largest tree that may be drafted."""
        return self.shape.largest if isinstance(self.shape, AutoShape) else self.shape

    @property
    def draft_slots(self) -> int:
        if isinstance(self.largest, TreeShape) and not self.largest.rerank:
            return 1 + self.largest.width * self.largest.depth
        return 1 + self.largest.total

    def take_shape(self, shape: TreeShape | StaticTree | AutoShape, num_heads: int) -> None:
        """Draft this tree with one head a level: a static one is cut to as many levels as there are heads.

        Raises InputError for a dynamic tree that is deeper.
        """
        self.shape = shape.cut(num_heads) if isinstance(shape, StaticTree) else shape
        if self.largest.depth > num_heads:
            raise InputError(
                f"tree depth is {self.largest.depth}, but each level takes a head and there are {num_heads}; set depth "
                f"to at most {num_heads}"
            )


def choose_shape(
    method: str, target: Target, num_heads: int, tree: str, given: Mapping[str, Any]
) -> TreeShape | StaticTree | AutoShape:
    """The tree of a method with one head a level. tree: "dynamic", "static" for the one that the released codes of
    Medusa and Hydra draft, or the name of another published tree; given: the width, depth and total a caller asked for.

    A dynamic tree has one level a head, at most those of the default for this target's size, and is sized by measured
    cost unless a total is given. Raises InputError for another tree, or sizes for a static one.
    """
    if tree != "dynamic":
        if tree not in ("static", *TREES):
            raise unknown_choice("tree", str(tree), ("dynamic", "static", *TREES))
        if given:
            names = ", ".join(given)
            raise InputError(f"{method} with tree={tree!r} does not read {names}; leave it out or change tree")
        paths = published_tree(DEFAULT if tree == "static" else tree)
        return StaticTree((path for path in paths if max(path) < target.vocab_size), target.device)
    shape = default_shape(target.model.num_parameters())
    sizes = {"depth": min(num_heads, shape.depth), "total": "auto", **given}
    by_cost = sizes["total"] == "auto"
    if by_cost:
        del sizes["total"]
    shape = replace(shape, **sizes)
    return AutoShape(shape) if by_cost else shape
