"""Self-speculative decoding (Draft & Verify, Zhang et al. 2024, arXiv 2309.08168).

The target drafts for itself with some of its attention and MLP sub-layers skipped, and verifies in one full pass. The
draft reads the target's exact KV of the prefix in the layers it keeps and writes its own from slot `length` on, which
verification overwrites: no extra weights, no second cache. The root's KV is not in the cache, so it is run first.

Two shapes of draft: the published chain, which ends early when the draft is unsure (section 3.3, adaptive threshold),
and a dynamic tree in which the skipping target plays EAGLE-2's draft head (`growth.py`).
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from slipstream.drafters.base import Drafter, Drafting, Observed, Run
from slipstream.drafters.growth import Frontier, TreeShape, grow
from slipstream.errors import InputError, unknown_choice
from slipstream.rules import Candidates
from slipstream.skipping.skip_set import SkipSetLike, resolve_skip_set
from slipstream.skipping.sublayers import SubLayers
from slipstream.target import Target
from slipstream.tree import DraftTree, chain

TREES = ("dynamic", "chain")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSettings:
    """The published draft chain and its exit rule. Defaults are those of the published runs."""

    length: int = 12
    """Tokens drafted at most (K in the paper)."""
    threshold: float = 0.6
    """First value of gamma: drafting stops after a token whose draft probability is below it."""
    adaptive: bool = True
    """Steer gamma towards `target_acceptance` after every verification; it is carried over from prompt to prompt."""
    target_acceptance: float = 0.9
    """Acceptance rate aimed at (alpha)."""

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or self.length < 1:
            raise InputError(f"layer-skip length is {self.length!r}; it must be at least 1, a whole number")
        if not isinstance(self.adaptive, bool):
            raise InputError(f"layer-skip adaptive is {self.adaptive!r}; it must be true or false")
        for name in ("threshold", "target_acceptance"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise InputError(f"layer-skip {name} is {value!r}; it must lie from 0 to 1")


@dataclass(slots=True)
class AdaptiveThreshold:
    """The exit threshold gamma and its published update (section 3.3; constants of the released runs)."""

    settings: ChainSettings
    gamma: float = field(init=False)
    acceptance: float = 0.0
    """Moving average of accepted / drafted in the generation at hand; starts at 0, as in the released code."""

    _STEP = 0.01
    _KEEP_ACCEPTANCE = 0.5
    _KEEP_GAMMA = 0.9

    def __post_init__(self) -> None:
        self.gamma = self.settings.threshold

    def update(self, num_accepted: int, num_drafted: int) -> None:
        """Move gamma up when too little was accepted, down otherwise; not down after a draft of full length."""
        if not self.settings.adaptive or num_drafted == 0:
            return
        rate = num_accepted / num_drafted
        self.acceptance = self._KEEP_ACCEPTANCE * self.acceptance + (1 - self._KEEP_ACCEPTANCE) * rate
        if self.acceptance < self.settings.target_acceptance:
            step = self._STEP
        elif num_drafted < self.settings.length:
            step = -self._STEP
        else:
            return  # the draft was never unsure: a lower threshold could not have made it longer
        moved = min(max(self.gamma + step, 0.0), 1.0)
        self.gamma = self._KEEP_GAMMA * self.gamma + (1 - self._KEEP_GAMMA) * moved


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
        """Draft until unsure. Asks the device for each token's confidence: the loop's stated exception."""
        threshold = self._threshold
        token, drawn = self._run.root, []
        for depth in range(min(threshold.settings.length, self._run.max_depth)):
            visible = torch.ones(1, depth + 1, dtype=torch.bool, device=token.device)
            logits = self._drafter.forward(self._run, token, depth, visible)
            drawn.append(self._run.rule.draw(logits, depth + 1))
            token = drawn[-1].token
            if math.exp(drawn[-1].log_confidence.item()) < threshold.gamma:
                break  # the unsure token stays in the draft: leaving it out would bias sampled drafts
        qs = [one.q for one in drawn if one.q is not None]
        return chain(
            torch.cat([one.token for one in drawn]),
            torch.cat([one.log_confidence for one in drawn]),
            torch.cat(qs) if qs else None,
        )

    def observe(self, observed: Observed) -> None:
        if observed.tree is not None:
            self._threshold.update(len(observed.path), observed.tree.num_nodes)
            self._drafter.threshold.gamma = self._threshold.gamma
