"""The drafter interface: a `Drafter` is loaded once, a `Drafting` is its part in one generation.

The engine calls `propose` for a tree under the current root, verifies it, and reports through `observe` every token
whose KV has been committed, prompt included. A drafter never touches committed state: it may write the cache's slots
from `length` on (verification overwrites them) and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slipstream.core.confidence import ConfidenceScale
from slipstream.core.rules import DecodingRule
from slipstream.core.tree import DraftTree
from slipstream.runtime.clock import Part
from slipstream.target.cache import KVCache
from slipstream.target.features import Features
from slipstream.target.target import Target


@dataclass(slots=True)
class Generation:
    """One generation as the engine and its drafter see it. The engine writes it, the drafter reads it."""

    target: Target
    cache: KVCache
    rule: DecodingRule
    tokens: list[int]
    """Prompt and all committed tokens; the last is the root."""
    prompt_length: int
    max_depth: int = 0
    """Deepest node worth drafting now: what the token budget, the context and the target's reach leave room for."""
    root: Tensor = field(init=False)
    """[1] int64 on the target's device, the last committed token; its KV is not in the cache yet."""

    def __post_init__(self) -> None:
        self.root = torch.tensor(self.tokens[-1:], dtype=torch.int64, device=self.target.device)

    @property
    def length(self) -> int:
        """Cached tokens, which is also the root's position."""
        return self.cache.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one pass of the target committed: a prefill chunk, or a root and the drafted tokens kept after it."""

    tokens: Sequence[int]
    """The tokens whose KV was committed, in order."""
    features: Tensor | None
    """[len(tokens), features] of these tokens, as the drafter's `features` asked; None where it asked for nothing."""
    tree: DraftTree | None = None
    """The verified tree; None for a prefill chunk."""
    choice: Tensor | None = None
    """[n + 1] the target's next token at the root and every node, kept or not."""
    path: Sequence[int] = ()
    """Indices of the nodes kept."""
    scouted: Sequence[int] = ()
    """What `Scouts.summarise` made of this pass; empty where no scouts went along."""


@dataclass(frozen=True, slots=True)
class Scouts:
    """Rows beside the draft in the target's pass. They see each other as a tree under the root does, are never accepted
    and leave nothing in the cache: the drafter learns from their logits.

    Depths beyond `generation.max_depth` are run at that depth, since no pass may go beyond the context or the target's
    reach.
    """

    tokens: Tensor  # [m] int64
    parents: Tensor  # [m] int64, index of the scout before, -1 = root; parents before children
    depth: Tensor  # [m] int64, 1 for the root's children
    summarise: Callable[
        [Tensor], Tensor
    ]  # the target's logits [m, vocab], unprocessed -> [k] int64, for `Observed.scouted`


def rows_after_root(tree: DraftTree, scouts: Scouts | None, max_depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, parents and depth of the rows of a pass after the root's: the nodes, and behind them the scouts.

    Depths of scouts are at most `max_depth`.
    """
    if scouts is None:
        return tree.tokens, tree.parents, tree.depth
    parents = torch.where(scouts.parents < 0, scouts.parents, scouts.parents + tree.num_nodes)
    return (
        torch.cat((tree.tokens, scouts.tokens)),
        torch.cat((tree.parents, parents)),
        torch.cat((tree.depth, scouts.depth.clamp(max=max_depth))),
    )


class Drafting(ABC):
    """A drafter at work on one generation. Its state belongs to that generation alone."""

    @abstractmethod
    def propose(self) -> DraftTree:
        """A tree under the root, at most `generation.max_depth` deep; an empty one is a step of plain decoding."""

    def scouts(self) -> Scouts | None:
        """Rows to run beside the tree just proposed; None for most drafters."""
        return None

    def observe(self, observed: Observed) -> None:  # noqa: B027 (a drafter without memory has nothing to note)
        """Take note of newly committed tokens."""

    def end_cycle(self, seconds: Mapping[Part, float]) -> None:  # noqa: B027 (few drafters size their drafts by it)
        """What the cycle just over took, by part; {} where that says nothing, since passes were still made ready.

        Called once a cycle, after `observe`.
        """


class ForwardingDrafting(Drafting):
    """Another drafting at its usual work; for those that watch one."""

    def __init__(self, inner: Drafting) -> None:
        self.inner = inner

    def propose(self) -> DraftTree:
        return self.inner.propose()

    def scouts(self) -> Scouts | None:
        return self.inner.scouts()

    def observe(self, observed: Observed) -> None:
        self.inner.observe(observed)

    def end_cycle(self, seconds: Mapping[Part, float]) -> None:
        self.inner.end_cycle(seconds)


class Drafter(ABC):
    """What proposes tokens for a target. Holds weights and settings; safe to share between generations, which may run
    in several threads. It never touches the target's modules: others run them at the same time.
    """

    name: str
    features: Features = Features()
    """What the drafter wants to see of the target's passes."""
    confidence: ConfidenceScale = ConfidenceScale()
    """How sure it may be of its order of tokens when the target samples."""

    @abstractmethod
    def start(self, generation: Generation) -> Drafting:
        """Take part in a new generation. Called before the prompt is prefilled."""

    @property
    def varies(self) -> bool:
        """Whether what is drafted for a text hangs on the clock, or on texts before it. Tokens do not, but rounding."""
        return False

    @property
    def draft_slots(self) -> int:
        """Cache slots that the drafter itself writes or its trees fill, root included, at most."""
        return 64
