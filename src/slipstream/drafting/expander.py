"""What a method supplies to draft with a model: logits after the nodes that a skeleton asks for.

The two skeletons, `tree.py` and `chain.py`, decide which nodes these are and what becomes of the answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.core.rules import Candidates, DecodingRule, Drawn
from slipstream.drafting.base import Observed
from slipstream.drafting.growth import Frontier
from slipstream.drafting.shape import Shape
from slipstream.target.cache import KVCache
from slipstream.target.passes import Executor


@dataclass(frozen=True, slots=True)
class DraftStage:
    """What `Expander.expand` hangs on in a draft, beside the nodes: then the draft can be run as one stage."""

    executor: Executor
    key: Hashable
    """Names the model that drafts: of two drafts with one key the same module runs."""
    cache: KVCache | None
    """The one that it writes; None: it runs no passes."""
    tensors: tuple[Tensor, ...]
    """All else."""
    take: Callable[..., None]
    """Called with tensors in the place of these before the first level."""


@dataclass(frozen=True, slots=True)
class DraftLogits:
    """A drafter's answer after some nodes. Where its vocabulary is a part of the target's, `ids` names its tokens."""

    logits: Tensor  # [w, columns]; [1, columns] where it is the same after every node
    ids: Tensor | None = None  # [columns] int64, the target's id of each column; None: column i is token i

    def children(self, rule: DecodingRule, depth: int, k: int, rows: int) -> Candidates:
        """The k best candidates after each of `rows` nodes, fewer where there are not so many, to stand at `depth`."""
        best = rule.children(self.logits, depth, min(k, self.logits.shape[-1]), self.ids)
        return Candidates(self._named(best.tokens).expand(rows, -1), best.log_confidence.expand(rows, -1))

    def draw(self, rule: DecodingRule, depth: int, vocab_size: int) -> Drawn:
        """One token for a chain, at `depth`. Its distribution, if it was sampled, is over the target's vocabulary."""
        drawn = rule.draw(self.logits, depth, self.ids)
        if self.ids is None:
            return drawn
        q = None if drawn.q is None else drawn.q.new_zeros(1, vocab_size).index_copy(1, self.ids, drawn.q)
        return Drawn(self._named(drawn.token), drawn.log_confidence, q)

    def _named(self, columns: Tensor) -> Tensor:
        return columns if self.ids is None else self.ids[columns]


class Expander(ABC):
    """A model at work on one generation. A cycle: `is_ready`, and if there is to be a draft, `begin`, then `expand`."""

    def catch_up(self, observed: Observed) -> None:  # noqa: B027 (some read all they need off the generation)
        """Take note of what was committed: a chunk of the prompt, or a cycle's tokens."""

    def is_ready(self) -> bool:
        """Whether there is anything to draft from yet, or still."""
        return True

    @abstractmethod
    def begin(self, shape: Shape) -> int:
        """Make ready to draft this shape under the root: run what is pending. Returns the most levels there can be."""

    def stage(self) -> DraftStage | None:
        """The draft that was begun, as a stage; None: it cannot be one."""
        return None

    @abstractmethod
    def expand(self, frontier: Frontier) -> DraftLogits:
        """Run the nodes of a level, the root first, each level after its parents'."""


def chain_frontier(token: Tensor, depth: int) -> Frontier:
    """The frontier of a chain: one node, the child of the last. token: [1] int64; depth: its own, 0 for the root."""
    seen = torch.ones(1, depth + 1, dtype=torch.bool, device=token.device)
    return Frontier(token, depth, token.new_full((1,), max(depth - 1, 0)), seen)
