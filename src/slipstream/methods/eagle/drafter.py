"""EAGLE-2 and EAGLE-1: a one-layer head on the target's features drafts a tree (arXiv 2406.16858 and 2401.15077).

Both methods are this one drafter with the same head; `eagle2` grows its tree by the head's confidence, `eagle` fills
EAGLE-1's table. A cycle: the newly committed tokens' true features go through the head in one pass, whose last row is
the root's; from there each level is one pass over the nodes to expand, each fed with the feature its parent predicted.

The head has a KV cache of its own. Row t holds (feature of token t, embedding of token t + 1); the root's row, of index
length - 1, is the last that rests on true features. Rows of the tree go to the slots behind and are forgotten, since
the next cycle's rows of the accepted tokens are made anew from the target's features.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

from slipstream.drafting.base import Generation, Observed
from slipstream.drafting.draft_vocabulary import DraftVocabulary, PartialHead
from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.expander import DraftLogits, DraftStage, Expander
from slipstream.drafting.growth import Frontier
from slipstream.drafting.head_passes import HeadPasses
from slipstream.drafting.shape import Shape
from slipstream.methods.eagle.head import EagleHead
from slipstream.target.features import Features
from slipstream.target.target import Target


class EagleDrafter(ModelDrafter):
    """A target's draft head and the tree it grows: dynamic for `eagle2`, static for `eagle`."""

    features = Features(last_hidden=True)

    def __init__(
        self, target: Target, head: EagleHead, shape: Shape, vocabulary: DraftVocabulary | None = None
    ) -> None:
        """head: on the target's device, in its dtype, as `load_head` returns it. vocabulary: None for the whole."""
        super().__init__(target, shape)
        ids = self.ids = None if vocabulary is None else vocabulary.ids
        """[columns] int64, the tokens that are drafted from; None: all."""
        self.score: Callable[[Tensor], Tensor] = target.head if ids is None else PartialHead(target, ids)
        """Logits of these tokens, [b, n, columns], for predicted features [b, n, h]."""
        self.name = "eagle" if shape.kind == "static" else "eagle2"
        self.head, self.confidence = head, head.confidence
        self.passes = HeadPasses(target, head, head.dtype)
        self.embed: Callable[[Tensor], Tensor] = target.model.get_input_embeddings()

    def expander(self, generation: Generation) -> EagleExpander:
        return EagleExpander(self, generation)


class HeadDrafter(Hashable, Protocol):
    """What an expander reads of the drafter: EAGLE's, or one whose head is run in the same way."""

    target: Target
    shape: Shape
    head: Any
    passes: HeadPasses
    embed: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]
    ids: Tensor | None


class EagleExpander(Expander):
    """The head at work on one generation."""

    def __init__(self, drafter: HeadDrafter, generation: Generation) -> None:
        self._drafter, self._generation = drafter, generation
        self._head, self._target = drafter.head, drafter.target
        context = self._target.context_length
        limit = None if context is None else context + drafter.shape.most_rows
        self.cache = self._target.executor.take_in(self._head.new_cache(self._target.device, limit), self._head)
        self._pending: Tensor | None = None  # [m, h] features of committed tokens whose rows are still to be run
        self._outputs: Tensor  # [rows, h] predicted features of the root and of the tree's rows so far

    def catch_up(self, observed: Observed) -> None:
        """Take the features of committed tokens; a prompt's go through the head at once, but for the last."""
        assert observed.features is not None
        new = observed.features.to(self._target.device)  # a sharded target ends on another device than it begins
        self._pending = new if self._pending is None else torch.cat((self._pending, new))
        if observed.tree is None and self._pending.shape[0] > 1:
            self._run_pending(self._pending.shape[0] - 1)

    def is_ready(self) -> bool:
        return self._pending is not None  # a prompt of one token has no feature to draft from yet

    def begin(self, shape: Shape) -> int:
        assert self._pending is not None
        self._outputs = self._run_pending(self._pending.shape[0])[-1:]  # [1, h]
        return shape.depth

    def _run_pending(self, count: int) -> Tensor:
        """Run and commit the first `count` pending rows. Returns their predicted features, [count, h]."""
        assert self._pending is not None
        features, self._pending = self._pending[:count], self._pending[count:]
        first = self.cache.length
        tokens = torch.tensor(self._generation.tokens[first + 1 : first + 1 + count], device=features.device)
        positions = torch.arange(first, first + count, device=features.device)
        output = self._pass(tokens, features, positions, self._target.causal(count), first)
        self.cache.commit(None, count)
        return output

    def stage(self) -> DraftStage:
        return DraftStage(self._target.executor, self._drafter, self.cache, (self._outputs,), self._take)

    def _take(self, outputs: Tensor) -> None:
        self._outputs = outputs

    def expand(self, frontier: Frontier) -> DraftLogits:
        if frontier.depth > 0:
            features = self._outputs[frontier.parent_rows]  # [w, h]
            visible = frontier.visible[:, 1:]  # without the root's row, which is committed
            positions = (self.cache.lengths - 1 + frontier.depth).expand_as(frontier.tokens)
            start = self.cache.length + visible.shape[1] - visible.shape[0]
            output = self._pass(frontier.tokens, features, positions, visible, start)
            self._outputs = torch.cat((self._outputs, output))
        newest = self._outputs[-frontier.tokens.shape[0] :]  # [w, h]
        return DraftLogits(self._drafter.score(newest[None])[0], self._drafter.ids)

    def _pass(self, tokens: Tensor, features: Tensor, positions: Tensor, visible: Tensor, start: int) -> Tensor:
        """The head over rows [w] written from slot `start` on, which see all committed rows and what `visible` says."""
        embeddings = self._drafter.embed(tokens[None])[0]  # [w, e]
        return self._drafter.passes.run((embeddings, features), positions, visible, self.cache, start)
