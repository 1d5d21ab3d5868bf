"""Hydra and Hydra++: heads that each know the tokens drafted before them (arXiv 2402.05109).

Where the heads start: the root is the last committed token, and the target has not run it yet, so the newest feature
known is that of the token *before* the root. Call that token t. Head 0 gets the feature of t and the embedding of the
root, t + 1, and predicts t + 2, the root's children; head i gets the embeddings of the i nodes of its path as well and
predicts the next level. So one level of the tree is one batched pass of one head, and a tree is at most as deep as
there are heads. This is the alignment of training and of the released code, where the root is the target's own choice.

With the prefix layer of Hydra++ the feature of t is replaced by the layer's output at t. The layer has a KV cache of
its own with one row per token, made from true features only: rows of committed tokens are run in one pass at the start
of a cycle, and nothing of a drafted token ever enters it.

Output is lossless at every temperature: the target verifies by the engine's rules. The "typical acceptance" of the
paper, which takes tokens that the target would not have sampled, changes the distribution and is not offered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slipstream.drafting.base import Generation, Observed
from slipstream.drafting.drafter import ModelDrafter, fit_to_heads
from slipstream.drafting.expander import DraftLogits, DraftStage, Expander
from slipstream.drafting.growth import Frontier
from slipstream.drafting.head_passes import HeadPasses
from slipstream.drafting.shape import Shape
from slipstream.methods.hydra.head import HydraHeads
from slipstream.target.features import Features
from slipstream.target.target import Target


class HydraDrafter(ModelDrafter):
    """A target's Hydra heads and the tree they grow: dynamic by their confidence, or of fixed shape."""

    name = "hydra"

    def __init__(self, target: Target, heads: HydraHeads, shape: Shape) -> None:
        """heads: on the target's device, in its dtype, as `load_heads` returns them. shape: a static tree is cut to as
        many levels as there are heads. Raises InputError for a dynamic tree that is deeper.
        """
        super().__init__(target, fit_to_heads(shape, heads.sizes.num_heads))
        self.heads, self.confidence = heads, heads.confidence
        self.as_run: Any = target.prepared(heads)
        self.prefix_passes = None if heads.prefix is None else HeadPasses(target, heads.prefix, heads.dtype)
        self.embed = target.model.get_input_embeddings()
        offset = heads.sizes.feature_offset
        self.features = Features(layers=(target.num_layers - offset,)) if offset else Features(last_hidden=True)

    def expander(self, generation: Generation) -> HydraExpander:
        return HydraExpander(self)


class HydraExpander(Expander):
    """The heads at work on one generation."""

    def __init__(self, drafter: HydraDrafter) -> None:
        self._heads, self._target, self._embed = drafter.as_run, drafter.target, drafter.embed
        passes = drafter.prefix_passes
        self._prefix = None if passes is None else _PrefixRows(drafter.heads, drafter.target, passes)
        self._feature: Tensor | None = None  # [1, h] of the token before the root
        self._inputs: Tensor  # [w, h + depth * e] what the head of the last level run saw of each of its rows

    def catch_up(self, observed: Observed) -> None:
        """Take the features of committed tokens."""
        assert observed.features is not None
        new = observed.features.to(self._target.device)  # a sharded target ends on another device than it begins
        self._feature = new[-1:]
        if self._prefix is not None:
            self._prefix.append(new, at_once=observed.tree is None)

    def is_ready(self) -> bool:
        return self._feature is not None  # a prompt of one token has no feature to draft from yet

    def begin(self, shape: Shape) -> int:
        assert self._feature is not None
        self._inputs = self._feature if self._prefix is None else self._prefix.newest()  # [1, h]
        return shape.depth

    def stage(self) -> DraftStage:
        return DraftStage(self._target.executor, self._heads, None, (self._inputs,), self._take)

    def _take(self, inputs: Tensor) -> None:
        self._inputs = inputs

    def expand(self, frontier: Frontier) -> DraftLogits:
        """The head of this depth over the frontier: each row gets its parent's input and the embedding of its token."""
        run_before = frontier.visible.shape[1] - frontier.visible.shape[0]
        parents = frontier.parent_rows - max(0, run_before - self._inputs.shape[0])  # [w] among the level before
        embeddings = self._embed(frontier.tokens[None])[0]  # [w, e]
        self._inputs = torch.cat((self._inputs[parents], embeddings), dim=1)  # [w, h + (depth + 1) * e]
        return DraftLogits(self._heads.logits(frontier.depth, self._inputs[None], self._target)[0])


class _PrefixRows:
    """The prefix layer's rows of one generation: row t is made from the feature of token t, at position t."""

    def __init__(self, heads: HydraHeads, target: Target, passes: HeadPasses) -> None:
        self._target, self._passes = target, passes
        self.cache = target.executor.take_in(heads.new_cache(target.device, target.context_length), heads)
        self._pending: Tensor | None = None  # [m, h] features of committed tokens whose rows are still to be run
        self._newest: Tensor  # [1, h] the layer's output at the last row run

    def append(self, features: Tensor, *, at_once: bool) -> None:
        """Take features [n, h]; at_once: run their rows now, as is best for the chunks of a prompt."""
        self._pending = features if self._pending is None else torch.cat((self._pending, features))
        if at_once:
            self.newest()

    def newest(self) -> Tensor:
        """Run and commit the pending rows. Returns the layer's output at the last token, [1, h]."""
        if self._pending is not None:
            features, self._pending = self._pending, None
            first, count = self.cache.length, features.shape[0]
            positions = torch.arange(first, first + count, device=features.device)
            output = self._passes.run((features,), positions, self._target.causal(count), self.cache, first)
            self.cache.commit(None, count)
            self._newest = output[-1:]
        return self._newest
