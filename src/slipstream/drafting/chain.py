"""Drafting chains: the skeleton of every drafter that draws them with a model, token by token."""

from __future__ import annotations

import math

import torch

from slipstream.core.tree import DraftTree, chain, empty_tree
from slipstream.drafting.base import Drafting, Generation, Observed
from slipstream.drafting.exit_rule import ExitRule
from slipstream.drafting.expander import Expander, chain_frontier
from slipstream.drafting.shape import Chain


class ChainDrafting(Drafting):
    """Draws one token after the other from an expander's logits until the exit rule ends the chain.

    With a threshold above 0 the device is asked for each token's confidence: the one stated exception to "no waiting
    inside a cycle".
    """

    def __init__(self, expander: Expander, exit_rule: ExitRule, generation: Generation) -> None:
        self.expander, self.exit_rule, self._generation = expander, exit_rule, generation

    def propose(self) -> DraftTree:
        if not self.expander.is_ready():
            return empty_tree(self._generation.target.device)
        length = min(self._generation.max_depth, self.exit_rule.length)
        return self._draw(min(length, self.expander.begin(Chain(length=length))))

    def observe(self, observed: Observed) -> None:
        self.expander.catch_up(observed)
        if observed.tree is not None:
            self.exit_rule.learn(len(observed.path), observed.tree.num_nodes)

    def _draw(self, length: int) -> DraftTree:
        """A chain of `length` tokens (at least 1), or fewer: until one is less probable than gamma."""
        rule, gamma = self._generation.rule, self.exit_rule.gamma
        token, drawn = self._generation.root, []
        for depth in range(length):
            answer = self.expander.expand(chain_frontier(token, depth))
            drawn.append(answer.draw(rule, depth + 1, self._generation.target.vocab_size))
            token = drawn[-1].token
            if gamma > 0 and math.exp(drawn[-1].log_confidence.item()) < gamma:
                break  # the unsure token stays in the draft: leaving it out would bias sampled drafts
        qs = [one.q for one in drawn if one.q is not None]
        return chain(
            torch.cat([one.token for one in drawn]),
            torch.cat([one.log_confidence for one in drawn]),
            torch.cat(qs) if qs else None,
        )
