"""Speculative sampling with a draft model (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318).

Any smaller causal language model with the target's vocabulary drafts: the published chain, drawn token by token, or a
dynamic tree in which the model plays EAGLE-2's draft head (`growth.py`).

The draft model has a KV cache of its own that keeps committed tokens only. A cycle runs the tokens committed since the
last one in one pass, whose last row is the root's; rows of drafts lie in the slots behind and are forgotten. Where the
draft model's own context ends (or the range in which its RoPE is fixed), drafting ends and decoding goes on plainly.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slipstream.drafting.base import Generation, Observed
from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.exit_rule import ExitRule
from slipstream.drafting.expander import DraftLogits, DraftStage, Expander
from slipstream.drafting.growth import Frontier
from slipstream.drafting.shape import Chain, Dynamic, Shape
from slipstream.errors import unknown_choice
from slipstream.methods.draft_model.checkpoint import confidence_of
from slipstream.methods.draft_model.vocabulary import fit_logits
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

logger = logging.getLogger(__name__)

SCHEDULES = ("constant", "heuristic")
_UNLIMITED = 1 << 62


@dataclass(frozen=True, kw_only=True)
class DraftChain(Chain):
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
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise unknown_choice("schedule", self.schedule, SCHEDULES)

    @cached_property
    def exit_rule(self) -> ExitRule:
        target = self.target_acceptance if self.adaptive else None
        return ExitRule(self.length, self.threshold, target, heuristic=self.schedule == "heuristic")


class DraftModelDrafter(ModelDrafter):
    """A smaller model that drafts for the target."""

    name = "draft-model"

    def __init__(self, target: Target, draft: Target, shape: Shape | None = None) -> None:
        """draft: as `load_draft` returns it."""
        super().__init__(target, shape or Dynamic())
        self.draft, self.confidence = draft, confidence_of(draft)
        self.longest_text = draft.family.reach(1)
        self.said_end = False
        self._num_embeddings: int = draft.model.get_input_embeddings().weight.shape[0]

    def expander(self, generation: Generation) -> DraftModelExpander:
        return DraftModelExpander(self, generation)

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


class DraftModelExpander(Expander):
    """The draft model at work on one generation."""

    def __init__(self, drafter: DraftModelDrafter, generation: Generation) -> None:
        self._drafter, self._generation, self._draft = drafter, generation, drafter.draft
        self.cache = drafter.draft.new_cache(drafter.shape.most_rows)
        self._after_root: Tensor  # [1, vocab] the draft model's logits after the root

    def catch_up(self, observed: Observed) -> None:
        """Read a prompt as it is prefilled; where passes must not be cut, all of it in one pass later."""
        if observed.tree is None and self._draft.family.may_cut_passes and self._levels() > 0:
            self._run_text(self._generation.length)

    def is_ready(self) -> bool:
        if self._levels() > 0:
            return True
        if not self._drafter.said_end:
            limit = self._draft.family.reach(len(self._generation.tokens))
            logger.warning(
                "draft model %s ends at its %s tokens; the text goes on by plain decoding", self._draft.name, limit
            )
            self._drafter.said_end = True
        return False

    def begin(self, shape: Shape) -> int:
        """Run all committed tokens that are not in the cache, root included."""
        family, count = self._draft.family, len(self._generation.tokens)
        anew = family.must_reprefill(self.cache.length, count)
        self.cache.rollback(0 if anew else min(self.cache.length, count - 1))
        self._after_root = self._run_text(count)
        nodes = family.most_nodes(self.cache.length)  # that may stand in slots other than their positions
        if nodes is None or shape.level_rows == 1:  # a chain's stand in their own
            return self._levels()
        return min(self._levels(), 1 + nodes // shape.level_rows)

    def stage(self) -> DraftStage | None:
        if not self._draft.may_replay:
            return None
        return DraftStage(self._draft.executor, self._drafter, self.cache, (self._after_root,), self._take)

    def _take(self, after_root: Tensor) -> None:
        self._after_root = after_root

    def expand(self, frontier: Frontier) -> DraftLogits:
        if frontier.depth == 0:
            return DraftLogits(self._after_root)
        visible = frontier.visible[:, 1:]  # [w, drafted rows]: without the root's, which is committed
        positions = (self.cache.lengths - 1 + frontier.depth).to(frontier.tokens.device).expand_as(frontier.tokens)
        start = self.cache.length + visible.shape[1] - visible.shape[0]
        return DraftLogits(self._drafter.forward(frontier.tokens, positions, visible, self.cache, start=start))

    def _levels(self) -> int:
        """Levels that the draft model can draft: rows run for them must stay within its reach."""
        count = len(self._generation.tokens)
        limit = self._draft.family.reach(count)
        return _UNLIMITED if limit is None else limit - count + 1

    def _run_text(self, end: int) -> Tensor:
        """Run and commit the tokens up to `end` that are not in the cache; logits after the last, [1, vocab]."""
        first, device = self.cache.length, self._draft.device
        tokens = torch.tensor(self._generation.tokens[first:end], device=device)
        positions = torch.arange(first, end, device=device)
        logits = self._drafter.forward(tokens, positions, self._draft.causal(end - first), self.cache)
        self.cache.commit(None, end - first)
        return logits
