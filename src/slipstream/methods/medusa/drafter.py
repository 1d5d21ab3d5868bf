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

from torch import Tensor

from slipstream.drafting.base import Generation, Observed
from slipstream.drafting.drafter import ModelDrafter, fit_to_heads
from slipstream.drafting.expander import DraftLogits, DraftStage, Expander
from slipstream.drafting.growth import Frontier
from slipstream.drafting.shape import Shape
from slipstream.methods.medusa.head import MedusaHeads
from slipstream.target.features import Features
from slipstream.target.target import Target


class MedusaDrafter(ModelDrafter):
    """A target's Medusa heads and the tree made of their guesses."""

    name = "medusa"
    features = Features(last_hidden=True)

    def __init__(self, target: Target, heads: MedusaHeads, shape: Shape) -> None:
        """heads: on the target's device, in its dtype, as `load_heads` returns them. shape: a static tree is cut to as
        many levels as there are heads. Raises InputError for a dynamic tree that is deeper.
        """
        super().__init__(target, fit_to_heads(shape, heads.sizes.num_heads))
        self.heads, self.confidence = heads, heads.confidence

    def expander(self, generation: Generation) -> MedusaExpander:
        return MedusaExpander(self)


class MedusaExpander(Expander):
    """The heads at work on one generation."""

    def __init__(self, drafter: MedusaDrafter) -> None:
        self._heads, self._target = drafter.heads, drafter.target
        self._feature: Tensor | None = None  # [1, h] of the token before the root
        self._logits: Tensor  # [levels, vocab] of the tree under way

    def catch_up(self, observed: Observed) -> None:
        """Take the feature of the last token that was committed: the root comes after it."""
        assert observed.features is not None
        self._feature = observed.features[-1:].to(self._target.device)  # a sharded target ends on another one

    def is_ready(self) -> bool:
        return self._feature is not None  # a prompt of one token has no feature to draft from yet

    def begin(self, shape: Shape) -> int:
        assert self._feature is not None
        self._logits = self._heads.all_logits(self._feature, self._target, shape.depth)
        return shape.depth

    def stage(self) -> DraftStage:
        return DraftStage(self._target.executor, self._heads, None, (self._logits,), self._take)

    def _take(self, logits: Tensor) -> None:
        self._logits = logits

    def expand(self, frontier: Frontier) -> DraftLogits:
        """The logits of the frontier's depth, the same for each of its nodes."""
        return DraftLogits(self._logits[frontier.depth : frontier.depth + 1])
