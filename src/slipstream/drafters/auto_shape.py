"""The size of a dynamic tree from measured costs: a node is worth adding while it brings more than it takes.

The value of a node estimates the probability that it is accepted, so a tree is expected to bring the sum of its nodes'
values. Now and then the largest tree is grown, and from the values of *all* its candidates follows what every smaller
tree would have brought; with the measured costs of drafting a level and verifying n rows that gives the depth and the
size with the most tokens per second, or plain decoding where no tree pays. How far values can be trusted is
corrected by what was accepted. Sizes therefore follow the clock; the tokens do not, as long as the rule is
greedy or coupled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slipstream.drafters.growth import TreeShape
from slipstream.runtime import Costs, fastest
from slipstream.tree import DraftTree

_FIRST_LOOKS = 4  # cycles of the largest tree at the start
_INTERVAL = 32  # cycles between two looks; doubled while plain decoding stays best
_LONGEST_INTERVAL = 256
_KEEP = 0.7  # of the old estimate at each look
_PRIOR = 4.0  # tokens' worth of belief that values are right


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched(TreeShape):
    """A shape that shows all its candidates before it chooses among them."""

    watch: Callable[[DraftTree], None]

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        self.watch(tree)
        return TreeShape.keep(self, tree, chosen)


class AutoShape:
    """Chooses the shape of every cycle, none larger than `largest`.

    Carried over from prompt to prompt, and shared by generations that take turns: what a cycle proposes is verified and
    noted before another one begins, so no tree is taken for another's, and the estimate is that of all their texts.
    """

    def __init__(self, largest: TreeShape) -> None:
        self.largest = largest
        self.costs: Costs | None = None
        """To be measured before the first tree."""
        self._watched = _Watched(
            width=largest.width, depth=largest.depth, total=largest.total, watch=self._note_candidates
        )
        self._current: TreeShape | None = largest
        self._expected: Tensor | None = None  # [depth, total] tokens that a tree so deep and large brings by its values
        self._fresh = False  # candidates were noted since the last decision
        self._looking = False  # the tree under way is a look
        self._cycle, self._next_look, self._interval = 0, 0, _INTERVAL
        self._believed, self._accepted = 0.0, 0.0  # tokens that values promised and that came, recent ones above all
        self._promise = 0.0  # of one tree of the current shape
        self._seen = 0  # accepted of the last look

    def next(self) -> TreeShape | None:
        """The shape of this cycle; None: decode plainly."""
        if self._fresh:
            self._decide()
        self._looking = self._cycle < _FIRST_LOOKS or self._cycle >= self._next_look
        if self._looking:
            self._next_look = self._cycle + self._interval
        self._cycle += 1
        return self._watched if self._looking else self._current

    def note_accepted(self, num_accepted: int) -> None:
        """What became of the cycle's tree."""
        if self._looking:
            self._seen = num_accepted
        elif self._current is not None:
            self._accepted += num_accepted
            self._believed += self._promise

    def _note_candidates(self, tree: DraftTree) -> None:
        """Take the values of a largest tree's candidates into the estimate; stays on the device."""
        if tree.max_depth < self.largest.depth:
            return  # cut short by the end of the budget
        depth = torch.arange(1, self.largest.depth + 1, device=tree.depth.device)[:, None]  # [depth, 1]
        values = tree.log_value.exp() * (tree.depth[None] <= depth)  # [depth, nodes]
        best = values.topk(min(self.largest.total, tree.num_nodes), dim=1).values.cumsum(dim=1)  # [depth, total]
        self._expected = best if self._expected is None else _KEEP * self._expected + (1 - _KEEP) * best
        self._fresh = True

    def _decide(self) -> None:
        """Choose the shape until the next look. Copies the estimate to the host."""
        assert self.costs is not None
        assert self._expected is not None
        self._fresh = False
        values = self._expected.tolist()
        self._believed, self._accepted = self._believed / 2 + values[-1][-1], self._accepted / 2 + self._seen
        trust = (self._accepted + _PRIOR) / (self._believed + _PRIOR)
        depth, total = fastest(self.costs, ([value * trust for value in row] for row in values))
        self._current = replace(self.largest, depth=depth, total=total) if depth else None
        self._promise = values[depth - 1][total - 1] if depth else 0.0
        if self._cycle > _FIRST_LOOKS:
            self._interval = _INTERVAL if depth else min(2 * self._interval, _LONGEST_INTERVAL)
            self._next_look = self._cycle + self._interval


def costs_of_levels(seconds: Callable[[int], float], depth: int) -> tuple[float, ...]:
    """Seconds to draft a tree of 0, 1, ... `depth` levels, from those of one level and of all: each costs the same."""
    one, deepest = seconds(1), seconds(depth)
    level = (deepest - one) / max(1, depth - 1)
    return (0.0, *(one + level * further for further in range(depth)))
