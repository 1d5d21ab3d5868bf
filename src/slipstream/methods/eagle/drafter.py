"""EAGLE-2 and EAGLE-1: a one-layer head on the target's features drafts a tree (arXiv 2406.16858 and 2401.15077).

Both methods are this one drafter with the same head; `eagle2` grows its tree by the head's confidence, `eagle` fills
EAGLE-1's table. A cycle: the newly committed tokens' true features go through the head in one pass, whose last row is
the root's; from there each level is one pass over the nodes to expand, each fed with the feature its parent predicted.

The head has a KV cache of its own. Row t holds (feature of token t, embedding of token t + 1); the root's row, of index
length - 1, is the last that rests on true features. Rows of the tree go to the slots behind and are forgotten, since
the next cycle's rows of the accepted tokens are made anew from the target's features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.auto_shape import AutoShape, ShapeInUse
from slipstream.drafting.base import Drafting, Observed, Run
from slipstream.drafting.growth import Frontier, TreeShape, grow
from slipstream.drafting.head_drafter import HeadDrafter
from slipstream.drafting.static_tree import StaticTree
from slipstream.methods.eagle.head import EagleHead, additive_mask
from slipstream.runtime.clock import Part
from slipstream.target.target import Features, Target


class EagleDrafter(HeadDrafter):
    """A target's draft head and the tree it grows: dynamic for `eagle2`, static for `eagle`."""

    features = Features(last_hidden=True)

    def __init__(self, target: Target, head: EagleHead, shape: TreeShape | StaticTree | AutoShape) -> None:
        """head: on the target's device, in its dtype, as `load_head` returns it. shape: an `AutoShape` sizes the trees
        by what they cost here, which is measured at the first generation.
        """
        self.name = "eagle" if isinstance(shape, StaticTree) else "eagle2"
        self.target, self.head, self.shape = target, head, shape
        self.confidence = head.confidence
        self.embed = target.model.get_input_embeddings()

    def begin(self, run: Run) -> Drafting:
        return EagleDrafting(self, run)


class EagleDrafting(Drafting):
    """The head at work on one generation."""

    def __init__(self, drafter: EagleDrafter, run: Run) -> None:
        self._drafter, self._run = drafter, run
        self._shape = ShapeInUse(drafter.shape, run.rule)
        self._head, self._target = drafter.head, drafter.target
        context = self._target.context_length
        limit = None if context is None else context + drafter.largest.num_rows
        self.cache = self._head.new_cache(self._target.device, limit)
        self._pending: Tensor | None = None  # [m, h] features of committed tokens whose rows are still to be run
        self._outputs: Tensor  # [rows, h] predicted features of the root and of the tree's rows so far

    def observe(self, observed: Observed) -> None:
        """Take the features of committed tokens; a prompt's go through the head at once, but for the last."""
        assert observed.features is not None
        new = observed.features.to(self._target.device)  # a sharded target ends on another device than it begins
        self._pending = new if self._pending is None else torch.cat((self._pending, new))
        if observed.tree is None and self._pending.shape[0] > 1:
            self._run_pending(self._pending.shape[0] - 1)
        self._shape.note(observed)

    def lasted(self, seconds: Mapping[Part, float]) -> None:
        self._shape.lasted(seconds)

    def propose(self) -> DraftTree:
        if self._pending is None:  # a prompt of one token: there is no feature to draft from yet
            return empty_tree(self._target.device)
        shape = self._shape.next()
        if shape is None:
            return empty_tree(self._target.device)
        self._outputs = self._run_pending(self._pending.shape[0])[-1:]  # [1, h]
        return grow(self._expand, self._run.root, shape.cut(self._run.max_depth))

    def _run_pending(self, count: int) -> Tensor:
        """Run and commit the first `count` pending rows. Returns their predicted features, [count, h]."""
        assert self._pending is not None
        features, self._pending = self._pending[:count], self._pending[count:]
        first = self.cache.length
        tokens = torch.tensor(self._run.tokens[first + 1 : first + 1 + count], device=features.device)
        positions = torch.arange(first, first + count, device=features.device)
        output = self._pass(tokens, features, positions, self._target.causal(count), first)
        self.cache.commit(None, count)
        return output

    def _expand(self, frontier: Frontier, k: int) -> Candidates:
        if frontier.depth > 0:
            features = self._outputs[frontier.parent_rows]  # [w, h]
            visible = frontier.visible[:, 1:]  # without the root's row, which is committed
            positions = torch.full_like(frontier.tokens, self.cache.length - 1 + frontier.depth)
            start = self.cache.length + visible.shape[1] - visible.shape[0]
            output = self._pass(frontier.tokens, features, positions, visible, start)
            self._outputs = torch.cat((self._outputs, output))
        newest = self._outputs[-frontier.tokens.shape[0] :]  # [w, h]
        logits = self._target.head(newest[None])[0]  # [w, vocab]
        return self._run.rule.children(logits, frontier.depth + 1, min(k, logits.shape[-1]))

    def _pass(self, tokens: Tensor, features: Tensor, positions: Tensor, visible: Tensor, start: int) -> Tensor:
        """The head over rows [w] written from slot `start` on, which see all committed rows and what `visible` says."""
        self.cache.begin(start, positions)
        prefix = torch.ones(visible.shape[0], self.cache.length, dtype=torch.bool, device=visible.device)
        mask = additive_mask(torch.cat((prefix, visible), dim=1), self._head.dtype)  # [1, 1, w, cache.end]
        embeddings = self._drafter.embed(tokens[None])
        output: Tensor = self._head(embeddings, features[None], positions[None], mask, self.cache)
        return output[0]
