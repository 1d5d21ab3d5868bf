"""Medusa: heads that guess several tokens ahead from one feature, each without knowing the others' (arXiv 2401.10774).

Where the heads stand: head i predicts token t + 2 + i from the feature of token t, whose own next token t + 1 the
target's LM head gives. The newest feature known while drafting is that of the token *before* the root, since the target
has not run the root yet; t + 1 is the root, so head i = 0, 1, ... speaks of depth i + 1 of the tree. That is also where
the published code has them: there the tree's first node is the target's own choice, which here is the root.

A head's answer does not depend on the path, so all nodes of a depth have the same candidates, and one pass of all heads
over one row is all that drafting costs. The tree is either dynamic, grown by the products of the heads' confidences
(`growth.py`), or one of the published static trees.

Output is lossless at every temperature: the target verifies by the engine's rules. The "typical acceptance" of the
paper (section 2.3.1), which takes tokens that the target would not have sampled, changes the distribution and is not
offered.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.auto_shape import AutoShape, ShapeInUse
from slipstream.drafting.base import Drafting, Observed, Run
from slipstream.drafting.growth import Frontier, TreeShape, grow
from slipstream.drafting.head_drafter import HeadDrafter
from slipstream.drafting.static_tree import StaticTree
from slipstream.methods.medusa.head import MedusaHeads
from slipstream.runtime.clock import Part
from slipstream.target.target import Features, Target


class MedusaDrafter(HeadDrafter):
    """A target's Medusa heads and the tree made of their guesses."""

    name = "medusa"
    features = Features(last_hidden=True)

    def __init__(self, target: Target, heads: MedusaHeads, shape: TreeShape | StaticTree | AutoShape) -> None:
        """heads: on the target's device, in its dtype, as `load_heads` returns them. shape: a static tree is cut to as
        many levels as there are heads; an `AutoShape` sizes the trees by what they cost here, which is measured at the
        first generation. Raises InputError for a dynamic tree that is deeper than there are heads.
        """
        self.target, self.heads = target, heads
        self.confidence = heads.confidence
        self.take_shape(shape, heads.sizes.num_heads)

    def begin(self, run: Run) -> Drafting:
        return MedusaDrafting(self, run)


class MedusaDrafting(Drafting):
    """The heads at work on one generation."""

    def __init__(self, drafter: MedusaDrafter, run: Run) -> None:
        self._drafter, self._run = drafter, run
        self._shape = ShapeInUse(drafter.shape, run.rule)
        self._feature: Tensor | None = None  # [1, h] of the token before the root
        self._logits: Tensor  # [levels, vocab] of the tree under way

    def observe(self, observed: Observed) -> None:
        """Take the feature of the last token that was committed: the root comes after it."""
        assert observed.features is not None
        self._feature = observed.features[-1:].to(self._drafter.target.device)  # a sharded target ends on another one
        self._shape.note(observed)

    def lasted(self, seconds: Mapping[Part, float]) -> None:
        self._shape.lasted(seconds)

    def propose(self) -> DraftTree:
        if self._feature is None:  # a prompt of one token: there is no feature to draft from yet
            return empty_tree(self._drafter.target.device)
        shape = self._shape.next()
        if shape is None:
            return empty_tree(self._drafter.target.device)
        shape = shape.cut(self._run.max_depth)
        self._logits = self._drafter.heads.all_logits(self._feature, self._drafter.target, shape.depth)
        return grow(self._expand, self._run.root, shape)

    def _expand(self, frontier: Frontier, k: int) -> Candidates:
        """The candidates of the frontier's depth, the same for each of its nodes."""
        logits = self._logits[frontier.depth : frontier.depth + 1]  # [1, vocab]
        best = self._run.rule.children(logits, frontier.depth + 1, min(k, logits.shape[-1]))  # [1, k]
        rows = frontier.tokens.shape[0]
        return Candidates(best.tokens.expand(rows, -1), best.log_confidence.expand(rows, -1))
