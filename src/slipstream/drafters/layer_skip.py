"""Self-speculative decoding (Draft & Verify, Zhang et al. 2024, arXiv 2309.08168).

The target drafts for itself with some of its attention and MLP sub-layers skipped, and verifies in one full pass. The
draft reads the target's exact KV of the prefix in the layers it keeps and writes its own from slot `length` on, which
verification overwrites: no extra weights, no second cache. The root's KV is not in the cache, so it is run first.

Two shapes of draft: the published chain, which ends early when the draft is unsure (section 3.3, adaptive threshold),
and a dynamic tree in which the skipping target plays EAGLE-2's draft head (`growth.py`).
"""

from __future__ import annotations

from copy import copy
from typing import Literal

import torch
from torch import Tensor

from slipstream.drafters.base import Drafter, Drafting, Observed, Run
from slipstream.drafters.exit_threshold import AdaptiveThreshold, ChainSettings, draft_chain
from slipstream.drafters.growth import Frontier, TreeShape, grow
from slipstream.errors import unknown_choice
from slipstream.rules import Candidates
from slipstream.skipping.skip_set import SkipSetLike, resolve_skip_set
from slipstream.skipping.sublayers import SubLayers
from slipstream.target import Target
from slipstream.tree import DraftTree

TREES = ("dynamic", "chain")


class LayerSkipDrafter(Drafter):
    """The target with sub-layers skipped, as its own drafter."""

    name = "layer-skip"

    def __init__(
        self,
        target: Target,
        skip_set: SkipSetLike = None,
        *,
        tree: Literal["dynamic", "chain"] = "dynamic",
        shape: TreeShape | None = None,
        chain_settings: ChainSettings | None = None,
    ) -> None:
        """skip_set: a `SkipSet`, a JSON file, lists, or None for the built-in default of this depth.

        Raises LayerSkipUnsupportedError where the target's sub-layers cannot be skipped, SkipSetError where the set
        does not fit it.
        """
        if tree not in TREES:
            raise unknown_choice("tree", tree, TREES)
        self.target, self.tree = target, tree
        sublayers = SubLayers.find(target.model)
        self.skip_set = resolve_skip_set(skip_set, sublayers, target.hash)
        self.skipped_fraction = sublayers.skipped_fraction(self.skip_set)
        self.shape = shape or TreeShape()
        self.threshold = AdaptiveThreshold(chain_settings or ChainSettings())
        self.plan = sublayers.plan(self.skip_set)

    def start(self, run: Run) -> Drafting:
        return _TreeDrafting(self, run) if self.tree == "dynamic" else _ChainDrafting(self, run)

    def end(self) -> None:
        self.plan.leave()

    @property
    def draft_slots(self) -> int:
        if self.tree == "dynamic":
            return max(self.shape.num_rows, 1 + self.shape.total)
        return 1 + self.threshold.settings.length

    def forward(self, run: Run, tokens: Tensor, depth: int, visible: Tensor) -> Tensor:
        """The skipping target's logits [w, vocab] for draft rows of one depth; they go to the next free draft slots.

        tokens: [w]. visible: [w, draft rows run before + w] bool.
        """
        first = visible.shape[1] - visible.shape[0]
        positions = torch.full_like(tokens, run.length + depth)
        with self.plan:
            output = self.target.forward(tokens, positions, visible, run.cache, start=run.length + first)
        return output.logits[0]


class _TreeDrafting(Drafting):
    def __init__(self, drafter: LayerSkipDrafter, run: Run) -> None:
        self._drafter, self._run = drafter, run

    def propose(self) -> DraftTree:
        return grow(self._expand, self._run.root, self._drafter.shape.cut(self._run.max_depth))

    def _expand(self, frontier: Frontier, k: int) -> Candidates:
        logits = self._drafter.forward(self._run, frontier.tokens, frontier.depth, frontier.visible)
        return self._run.rule.children(logits, frontier.depth + 1, min(k, logits.shape[-1]))


class _ChainDrafting(Drafting):
    def __init__(self, drafter: LayerSkipDrafter, run: Run) -> None:
        self._drafter, self._run = drafter, run
        self._threshold = copy(drafter.threshold)  # gamma is carried over, the average of acceptance is not

    def propose(self) -> DraftTree:
        """Draft until unsure (`draft_chain`)."""
        run, threshold = self._run, self._threshold
        length = min(threshold.settings.length, run.max_depth)
        return draft_chain(self._logits_after, run.rule, run.root, length, threshold.gamma)

    def _logits_after(self, token: Tensor, depth: int) -> Tensor:
        visible = torch.ones(1, depth + 1, dtype=torch.bool, device=token.device)
        return self._drafter.forward(self._run, token, depth, visible)

    def observe(self, observed: Observed) -> None:
        if observed.tree is not None:
            self._threshold.update(len(observed.path), observed.tree.num_nodes)
            self._drafter.threshold.gamma = self._threshold.gamma
