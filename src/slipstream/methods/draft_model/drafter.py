"""Speculative sampling with a draft model (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

Any smaller causal language model with the target's vocabulary drafts: the published chain, drawn token by token, or a
dynamic tree in which the model plays EAGLE-2's draft head (`growth.py`).

The draft model has a KV cache of its own that keeps committed tokens only. A cycle runs the tokens committed since the
last one in one pass, whose last row is the root's; rows of drafts lie in the slots behind and are forgotten. Where the
draft model's own context ends (or the range in which its RoPE is fixed), drafting ends and decoding goes on plainly.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slipstream.core.rules import Candidates, GreedyRule
from slipstream.core.tree import DraftTree, empty_tree
from slipstream.drafting.auto_shape import AutoShape, ShapeInUse
from slipstream.drafting.base import Drafter, Drafting, Observed, Run
from slipstream.drafting.exit_threshold import AdaptiveThreshold, ChainSettings, draft_chain
from slipstream.drafting.growth import Frontier, TreeShape, grow
from slipstream.errors import unknown_choice
from slipstream.methods.draft_model.checkpoint import confidence_of
from slipstream.methods.draft_model.vocabulary import fit_logits
from slipstream.runtime.clock import Part
from slipstream.runtime.costs import Costs, measure_costs
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

logger = logging.getLogger(__name__)

TREES = ("dynamic", "chain")
SCHEDULES = ("constant", "heuristic")
_UNLIMITED = 1 << 62
_FIRST_LENGTH, _LONGER, _SHORTER = 5, 2, 1  # of the heuristic, as in transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftChainSettings(ChainSettings):
    """The chain of a draft model. Defaults are those of transformers' assisted generation."""

    length: int = 20
    """Tokens drafted at most."""
    threshold: float = 0.4
    """Drafting stops after a token whose draft probability is below it. 0: never."""
    adaptive: bool = False
    """Steer the threshold towards `target_acceptance`, as Draft & Verify does."""
    schedule: str = "constant"
    """constant: up to `length` tokens; heuristic: first 5, 2 more after a whole draft was kept, else 1 fewer."""

    def __post_init__(self) -> None:
        ChainSettings.__post_init__(self)
        if self.schedule not in SCHEDULES:
            raise unknown_choice("schedule", self.schedule, SCHEDULES)


class DraftLength:
    """How many tokens a chain may have: constant, or transformers' heuristic; carried over from prompt to prompt."""

    def __init__(self, settings: DraftChainSettings) -> None:
        self._longest, self._moves = settings.length, settings.schedule == "heuristic"
        self.current = min(_FIRST_LENGTH, self._longest) if self._moves else self._longest

    def update(self, num_accepted: int, num_drafted: int) -> None:
        """A chain that ended early and was kept says nothing about the length."""
        if not self._moves or num_accepted == num_drafted < self.current:
            return
        moved = self.current + _LONGER if num_accepted == num_drafted else self.current - _SHORTER
        self.current = min(max(moved, 1), self._longest)


class DraftModelDrafter(Drafter):
    """A smaller model that drafts for the target."""

    name = "draft-model"

    def __init__(
        self,
        target: Target,
        draft: Target,
        *,
        tree: Literal["dynamic", "chain"] = "dynamic",
        shape: TreeShape | AutoShape | None = None,
        chain_settings: DraftChainSettings | None = None,
    ) -> None:
        """draft: as `load_draft` returns it. shape: of a dynamic tree; an `AutoShape` sizes trees by what they cost
        here, which is measured at the first generation.
        """
        if tree not in TREES:
            raise unknown_choice("tree", tree, TREES)
        self.target, self.draft, self.tree = target, draft, tree
        self.shape = shape or TreeShape()
        self.chain_settings = chain_settings or DraftChainSettings()
        self.threshold = AdaptiveThreshold(self.chain_settings)
        self.length = DraftLength(self.chain_settings)
        self.confidence = confidence_of(draft)
        self.said_end = False
        self._num_embeddings: int = draft.model.get_input_embeddings().weight.shape[0]

    def start(self, run: Run) -> Drafting:
        if self.tree == "chain":
            return ChainDrafting(self, run)
        if isinstance(self.shape, AutoShape) and self.shape.costs is None:
            self.shape.costs = tree_costs(self, self.shape.largest)
        return TreeDrafting(self, run)

    @property
    def largest(self) -> TreeShape:
        """The largest tree that may be drafted."""
        return self.shape.largest if isinstance(self.shape, AutoShape) else self.shape

    @property
    def draft_slots(self) -> int:
        return 1 + (self.largest.total if self.tree == "dynamic" else self.chain_settings.length)

    @property
    def own_slots(self) -> int:
        """Slots that a draft takes in the draft model's cache."""
        return self.largest.num_rows if self.tree == "dynamic" else self.chain_settings.length

    def forward(
        self, tokens: Tensor, positions: Tensor, visible: Tensor, cache: KVCache, *, start: int | None = None
    ) -> Tensor:
        """The draft model over rows [w], all arguments as `Target.forward` takes them, on any device.

        Returns logits over the target's ids on the target's device, [w, vocab], or the last row's only, [1, vocab],
        where start is None. Ids that the draft model lacks are read as its last one.
        """
        device = self.draft.device
        known = tokens.to(device).clamp(max=self._num_embeddings - 1)
        output = self.draft.forward(
            known, positions.to(device), visible.to(device), cache, start=start, last_logits_only=start is None
        )
        logits = output.logits[0, -1:] if start is None else output.logits[0]
        return fit_logits(logits.to(self.target.device), self.target.vocab_size)


class _ModelDrafting(Drafting):
    """The draft model at work on one generation."""

    def __init__(self, drafter: DraftModelDrafter, run: Run) -> None:
        self._drafter, self._run, self._draft = drafter, run, drafter.draft
        self.cache = drafter.draft.new_cache(drafter.own_slots)
        self._after_root: Tensor  # [1, vocab] the draft model's logits after the root

    def observe(self, observed: Observed) -> None:
        """Read a prompt as it is prefilled; where RoPE depends on the pass, all of it in one pass later."""
        if observed.tree is None and self._draft.rolling_rope is None and self._reach() > 0:
            self._read(self._run.length)

    def propose(self) -> DraftTree:
        depth = min(self._run.max_depth, self._reach())
        if depth < 1:
            self._say_end()
            return empty_tree(self._run.root.device)
        return self._propose(depth)

    @abstractmethod
    def _propose(self, max_depth: int) -> DraftTree:
        """A draft of at most `max_depth` levels, at least 1."""

    def _reach(self) -> int:
        """Levels that the draft model can draft: rows run for them must stay below its limit."""
        limit = self._limit()
        return _UNLIMITED if limit is None else limit - len(self._run.tokens) + 1

    def _limit(self) -> int | None:
        """Tokens up to which the draft model goes on from here: its context, and no pass across a boundary of RoPE."""
        limit, boundary = self._draft.context_length, self._draft.rope_boundary
        if boundary is not None and (len(self._run.tokens) <= boundary or self._draft.rolling_rope == "dynamic"):
            return boundary if limit is None else min(limit, boundary)
        return limit

    def _say_end(self) -> None:
        if not self._drafter.said_end:
            told = self._draft.name, self._limit()
            logger.warning("draft model %s ends at its %s tokens; the text goes on by plain decoding", *told)
            self._drafter.said_end = True

    def _catch_up(self) -> None:
        """Run all committed tokens that are not in the cache, root included."""
        count, boundary = len(self._run.tokens), self._draft.rope_boundary
        crossed = boundary is not None and self.cache.length <= boundary < count  # keys change their frequencies
        self.cache.rollback(0 if crossed else min(self.cache.length, count - 1))
        self._after_root = self._read(count)

    def _read(self, end: int) -> Tensor:
        """Run and commit the tokens up to `end` that are not in the cache; logits after the last, [1, vocab]."""
        first, device = self.cache.length, self._draft.device
        tokens = torch.tensor(self._run.tokens[first:end], device=device)
        positions = torch.arange(first, end, device=device)
        logits = self._drafter.forward(tokens, positions, self._draft.causal(end - first), self.cache)
        self.cache.commit(None, end - first)
        return logits

    def _rows(self, tokens: Tensor, depth: int, visible: Tensor) -> Tensor:
        """Logits [w, vocab] after drafted rows of one depth (1, 2, ...).

        visible: [w, drafted rows run before + w] bool; all committed tokens are seen.
        """
        positions = torch.full_like(tokens, self.cache.length - 1 + depth)
        start = self.cache.length + visible.shape[1] - visible.shape[0]
        return self._drafter.forward(tokens, positions, visible, self.cache, start=start)


class TreeDrafting(_ModelDrafting):
    """Grows dynamic trees."""

    def __init__(self, drafter: DraftModelDrafter, run: Run) -> None:
        super().__init__(drafter, run)
        self._shape = ShapeInUse(drafter.shape, run.rule)

    def observe(self, observed: Observed) -> None:
        super().observe(observed)
        self._shape.note(observed)

    def lasted(self, seconds: Mapping[Part, float]) -> None:
        self._shape.lasted(seconds)

    def _propose(self, max_depth: int) -> DraftTree:
        shape = self._shape.next()
        if shape is None:
            return empty_tree(self._run.root.device)
        self._catch_up()
        rows = self._draft.max_nodes(self.cache.length)  # that may stand in slots other than their positions
        if rows is not None:
            max_depth = min(max_depth, 1 + rows // shape.width)
        return grow(self._expand, self._run.root, shape.cut(max_depth))

    def _expand(self, frontier: Frontier, k: int) -> Candidates:
        logits = self._after_root
        if frontier.depth > 0:  # the root's row is committed
            logits = self._rows(frontier.tokens, frontier.depth, frontier.visible[:, 1:])
        return self._run.rule.children(logits, frontier.depth + 1, min(k, logits.shape[-1]))


class ChainDrafting(_ModelDrafting):
    """Draws chains, until unsure or at the length of the schedule."""

    def __init__(self, drafter: DraftModelDrafter, run: Run) -> None:
        super().__init__(drafter, run)
        self._threshold = copy(drafter.threshold)  # gamma is carried over, the average of acceptance is not

    def observe(self, observed: Observed) -> None:
        super().observe(observed)
        if observed.tree is not None and observed.tree.num_nodes:
            counts = len(observed.path), observed.tree.num_nodes
            self._threshold.update(*counts)
            self._drafter.threshold.gamma = self._threshold.gamma
            self._drafter.length.update(*counts)

    def _propose(self, max_depth: int) -> DraftTree:
        self._catch_up()
        length = min(max_depth, self._drafter.length.current)
        return draft_chain(self._logits_after, self._run.rule, self._run.root, length, self._threshold.gamma)

    def _logits_after(self, token: Tensor, depth: int) -> Tensor:
        if depth == 0:
            return self._after_root
        return self._rows(token, depth, torch.ones(1, depth, dtype=torch.bool, device=token.device))


@torch.inference_mode()
def tree_costs(drafter: DraftModelDrafter, largest: TreeShape) -> Costs:
    """What verifying and drafting cost for trees up to `largest`."""
    target, draft = drafter.target, drafter.draft
    count = max(1, min(32, (draft.rope_boundary or draft.context_length or 1 << 30) - largest.depth))
    run = Run(target, target.new_cache(0), GreedyRule(), [0] * count, count)
    drafting = TreeDrafting(DraftModelDrafter(target, draft, shape=largest), run)

    def draft_levels(depth: int) -> None:
        run.max_depth = depth
        drafting.cache.rollback(min(drafting.cache.length, max(0, count - 3)))  # a cycle has a few tokens to read
        drafting.propose()

    return measure_costs(target, 1 + largest.total, largest.depth, draft_levels)
