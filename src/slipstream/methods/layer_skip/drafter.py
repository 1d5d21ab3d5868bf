"""Self-speculative decoding (Draft & Verify, Zhang et al. 2024, arXiv 2309.08168).

The target drafts for itself with some of its attention and MLP sub-layers skipped, and verifies in one full pass. The
draft reads the target's exact KV of the prefix in the layers it keeps and writes its own from slot `length` on, which
verification overwrites: no extra weights, no second cache. The root's KV is not in the cache, so it is run first.

Two shapes of draft: the published chain, which ends early when the draft is unsure (section 3.3, adaptive threshold),
and a dynamic tree in which the skipping target plays EAGLE-2's draft head (`growth.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from typing import Literal

import torch
from torch import Tensor

from slipstream.core.confidence import ConfidenceScale
from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafter, Drafting, Observed, Run
from slipstream.drafting.exit_threshold import AdaptiveThreshold, ChainSettings, draft_chain
from slipstream.drafting.growth import Frontier, TreeShape, grow
from slipstream.errors import unknown_choice
from slipstream.methods.layer_skip.adapt import AdaptiveSkipSet, AdaptSettings
from slipstream.methods.layer_skip.trial import Trials
from slipstream.skipping.costs import measure_costs
from slipstream.skipping.resolve import SkipSetLike, resolve_skip_set
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.target import Target

TREES = ("dynamic", "chain")
_TIMED_PREFIX = 64  # tokens in the cache while costs are measured


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
        adapt: AdaptSettings | None = None,
    ) -> None:
        """skip_set: a `SkipSet`, a JSON file, lists, or None for the built-in default of this depth.

        adapt: refine the set while it is in use, starting from `skip_set`; None: it stays.

        Raises LayerSkipUnsupportedError where the target's sub-layers cannot be skipped, SkipSetError where the set
        does not fit it.
        """
        if tree not in TREES:
            raise unknown_choice("tree", tree, TREES)
        self.target, self.tree = target, tree
        self.sublayers = SubLayers.find(target.model)
        self.use(resolve_skip_set(skip_set, self.sublayers, target.hash))
        self.shape = shape or TreeShape()
        self.threshold = AdaptiveThreshold(chain_settings or ChainSettings())
        self.adaptive = None if adapt is None else self._adapting(adapt)
        if tree == "dynamic":  # a chain's exit rule takes probabilities as they are, as published
            self.confidence = ConfidenceScale.of(self.skip_set.provenance.get("confidence_scale"))

    def _adapting(self, adapt: AdaptSettings) -> AdaptiveSkipSet:
        if self.tree == "chain":
            return AdaptiveSkipSet(self.skip_set, adapt)
        width, per_level = self.shape.width, round(self.shape.total / self.shape.depth)
        return AdaptiveSkipSet(self.skip_set, adapt, level_rows=width, num_children=min(width, max(1, per_level)))

    def use(self, skip_set: SkipSet) -> None:
        """Draft with this set from the next pass on."""
        self.skip_set = skip_set
        self.skipped_fraction = self.sublayers.skipped_fraction(skip_set)
        self.plan = self.sublayers.plan(skip_set)

    def start(self, run: Run) -> Drafting:
        adaptive = self.adaptive
        if adaptive is not None and adaptive.costs is None:
            widths = (1, adaptive.level_rows, 1 + self._most_nodes, adaptive.settings.trial_rows)
            adaptive.costs = measure_costs(self.target, self.sublayers, widths, _TIMED_PREFIX)
        return _TreeDrafting(self, run) if self.tree == "dynamic" else _ChainDrafting(self, run)

    def end(self) -> None:
        if self.adaptive is not None and self.adaptive.trial_plan is not None:
            self.adaptive.trial_plan.leave()
        self.plan.leave()

    @property
    def draft_slots(self) -> int:
        drafted = max(self.shape.num_rows, 1 + self._most_nodes) if self.tree == "dynamic" else 1 + self._most_nodes
        return drafted if self.adaptive is None else max(drafted, self.adaptive.settings.trial_rows)

    @property
    def _most_nodes(self) -> int:
        return self.shape.total if self.tree == "dynamic" else self.threshold.settings.length

    def forward(self, run: Run, tokens: Tensor, depth: int, visible: Tensor) -> Tensor:
        """The skipping target's logits [w, vocab] for draft rows of one depth; they go to the next free draft slots.

        tokens: [w]. visible: [w, draft rows run before + w] bool.
        """
        first = visible.shape[1] - visible.shape[0]
        positions = torch.full_like(tokens, run.length + depth)
        with self.plan:
            output = self.target.forward(tokens, positions, visible, run.cache, start=run.length + first)
        return output.logits[0]


class _LayerSkipDrafting(Drafting):
    """What both shapes share: the skip set may change before a draft is begun, never within one."""

    def __init__(self, drafter: LayerSkipDrafter, run: Run) -> None:
        self._drafter, self._run = drafter, run
        adaptive = drafter.adaptive
        self._trials = None if adaptive is None else Trials(adaptive, drafter.sublayers, run, drafter.use)

    def propose(self) -> DraftTree:
        if self._trials is not None:
            self._trials.step()
        return self._draft()

    def observe(self, observed: Observed) -> None:
        tree, adaptive = observed.tree, self._drafter.adaptive
        if adaptive is not None and tree is not None and tree.num_nodes > 0:
            adaptive.note_cycle(len(observed.path), tree.max_depth, tree.num_nodes)

    @abstractmethod
    def _draft(self) -> DraftTree:
        """The tree of this cycle."""


class _TreeDrafting(_LayerSkipDrafting):
    def _draft(self) -> DraftTree:
        return grow(self._expand, self._run.root, self._drafter.shape.cut(self._run.max_depth))

    def _expand(self, frontier: Frontier, k: int) -> Candidates:
        logits = self._drafter.forward(self._run, frontier.tokens, frontier.depth, frontier.visible)
        return self._run.rule.children(logits, frontier.depth + 1, min(k, logits.shape[-1]))


class _ChainDrafting(_LayerSkipDrafting):
    def __init__(self, drafter: LayerSkipDrafter, run: Run) -> None:
        super().__init__(drafter, run)
        self._threshold = copy(drafter.threshold)  # gamma is carried over, the average of acceptance is not

    def _draft(self) -> DraftTree:
        """Draft until unsure (`draft_chain`)."""
        run, threshold = self._run, self._threshold
        length = min(threshold.settings.length, run.max_depth)
        return draft_chain(self._logits_after, run.rule, run.root, length, threshold.gamma)

    def _logits_after(self, token: Tensor, depth: int) -> Tensor:
        visible = torch.ones(1, depth + 1, dtype=torch.bool, device=token.device)
        return self._drafter.forward(self._run, token, depth, visible)

    def observe(self, observed: Observed) -> None:
        super().observe(observed)
        if observed.tree is not None:
            self._threshold.update(len(observed.path), observed.tree.num_nodes)
            self._drafter.threshold.gamma = self._threshold.gamma
