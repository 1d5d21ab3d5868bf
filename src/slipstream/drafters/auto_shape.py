"""The size of a dynamic tree from measured costs: a node is worth adding while it brings more than it takes.

What a tree brings. The value of a node estimates the probability that it is accepted, so a tree is expected to bring
the sum of its nodes' values. Now and then the largest tree is grown, and from the values of *all* its candidates
follows what every smaller tree would have brought. How far values can be trusted is corrected by what was accepted.

What it takes. The costs of drafting a level and of verifying n rows are measured before the first tree. They are passes
out of context on a machine that may be busy now and idle later, so they are corrected by the cycles of the text itself:
a plain cycle beside one that drafted says how many plain cycles a drafting one really takes. Neighbours are compared,
since a slow moment of the machine then slows both.

Both together give the depth and the size with the most tokens per second, or plain decoding where no tree pays. Sizes
therefore follow the clock; the tokens do not, as long as the rule is greedy or coupled.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from slipstream.clock import Part
from slipstream.drafters.base import Observed
from slipstream.drafters.growth import TreeShape, rerank
from slipstream.drafters.static_tree import StaticTree
from slipstream.rules import DecodingRule
from slipstream.runtime import Costs, Fastest, fastest
from slipstream.tree import DraftTree

_FIRST_ROUNDS = 3  # at the start
_INTERVAL = 32  # cycles from one round to the next; doubled while plain decoding stays best
_LONGEST_INTERVAL = 256
_CLEAR = 1.2  # of plain decoding's speed: where drafting is so much faster, only every fourth round has a plain cycle
_KEEP = 0.7  # of the old estimate at each look
_PRIOR = 4.0  # tokens' worth of belief that values are right
_CHECK = 8  # cycles of drafting from one choice to the next: by what was accepted, with no new look
_PAIRS = 5  # the latest neighbours whose median is believed
_LEAST_ADDED = 0.02  # passes over one row
_MOST_TIMES = 20.0  # of what was measured

Kind = Literal["look", "drafted", "plain", "best"]
"""Of a cycle. A round is a look, which grows the largest tree and shows all its candidates but has no more of them
verified than usual; then a cycle that drafts and a plain one, to be compared. Between rounds comes what is best."""


class AutoShape:
    """Chooses the shape of every cycle, none larger than `largest`.

    Carried over from prompt to prompt, and shared by generations that take turns: what a cycle proposes is verified and
    noted before another one begins, so no tree is taken for another's, and an estimate is that of all their texts.
    Greedy and sampled texts have estimates of their own: less is accepted of the same drafts when sampling.
    """

    def __init__(self, largest: TreeShape) -> None:
        self.largest = largest
        self.costs: Costs | None = None
        """To be measured before the first tree."""
        self._choosers: dict[tuple[type[DecodingRule], float], SizeChooser] = {}

    def under(self, rule: DecodingRule) -> SizeChooser:
        """The one that chooses for texts under such a rule, temperatures to the first decimal place."""
        assert self.costs is not None
        chooser = self._choosers.setdefault((type(rule), round(rule.temperature, 1)), SizeChooser(self.largest))
        chooser.costs = self.costs
        return chooser


FixedShape = TypeVar("FixedShape", bound=TreeShape | StaticTree)


class ShapeInUse(Generic[FixedShape]):
    """The shape of a drafter's trees in one generation, fixed or chosen anew each cycle."""

    def __init__(self, shape: FixedShape | AutoShape, rule: DecodingRule) -> None:
        self._fixed = None if isinstance(shape, AutoShape) else shape
        self._chooser = shape.under(rule) if isinstance(shape, AutoShape) else None

    def next(self) -> FixedShape | TreeShape | None:
        """The tree of the cycle that begins; None: none, since it would not pay."""
        return self._fixed if self._chooser is None else self._chooser.next()

    def note(self, observed: Observed) -> None:
        """What became of the cycle's tree."""
        if self._chooser is not None and observed.tree is not None:
            self._chooser.note(observed.tree, len(observed.path))

    def lasted(self, seconds: Mapping[Part, float]) -> None:
        """What the cycle took."""
        if self._chooser is not None:
            self._chooser.lasted(seconds)


class SizeChooser:
    """Chooses sizes for texts of one kind, cycle by cycle: `next`, then `note` and `lasted` for what became of it."""

    def __init__(self, largest: TreeShape) -> None:
        self.largest = largest
        self.costs: Costs
        """As measured before the first tree."""
        self._gains = _Gains(largest)
        self._clock = _Clock()
        first = replace(largest, total=min(largest.total, largest.width + largest.depth))
        self._best: TreeShape | None = first
        self._trial = first  # the best of all trees, also where plain decoding is better than any
        self._gain = 1.0  # of `_trial`, over plain decoding
        self._round: deque[Kind] = deque()
        self._kind: Kind = "best"
        self._cycle, self._next_round, self._interval, self._rounds = 0, 0, _INTERVAL, 0

    def next(self) -> TreeShape | None:
        """The shape of this cycle; None: decode plainly."""
        if self._cycle >= self._next_round:
            self._begin_round()
        self._cycle += 1
        self._kind = self._round.popleft() if self._round else "best"
        if self._kind == "look":
            return self._look()
        return {"drafted": self._trial, "plain": None, "best": self._best}[self._kind]

    def _look(self) -> TreeShape:
        return _Watched(
            width=self.largest.width,
            depth=self.largest.depth,
            total=self.largest.total,
            num_kept=self._trial.total,
            watch=self._gains.note_candidates,
        )

    def note(self, tree: DraftTree, num_accepted: int) -> None:
        """What became of the cycle's tree, an empty one included."""
        self._clock.drafted(tree)
        if tree.num_nodes:
            self._gains.note_accepted(tree, num_accepted, looking=self._kind == "look")

    def lasted(self, seconds: Mapping[Part, float]) -> None:
        """What the cycle took, by part. After a look, copies its estimate to the host."""
        self._clock.lasted(self.costs, seconds, compare=self._kind != "look")
        if self._gains.fresh:
            self._gains.read()
            self._decide()
            if self._rounds >= _FIRST_ROUNDS:
                self._interval = _INTERVAL if self._best else min(2 * self._interval, _LONGEST_INTERVAL)
                self._next_round = self._cycle + self._interval
        elif self._best is not None and self._gains.known and self._cycle % _CHECK == 0:
            self._decide()

    def _begin_round(self) -> None:
        self._rounds += 1
        timed = self._gain < _CLEAR or self._rounds <= _FIRST_ROUNDS or self._rounds % 4 == 0
        self._round = deque(("look", "drafted", "plain") if timed else ("look",))
        self._next_round = self._cycle + (len(self._round) if self._rounds < _FIRST_ROUNDS else self._interval)

    def _decide(self) -> None:
        """Choose the shape anew."""
        found = self._gains.best(self._clock.corrected(self.costs))
        self._gain = found.gain
        self._trial = replace(self.largest, depth=found.depth, total=found.total)
        self._best = self._trial if found.gain > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched(TreeShape):
    """A shape that shows all candidates for `total` nodes and keeps the best few."""

    num_kept: int
    watch: Callable[[DraftTree], None]

    def keep(self, tree: DraftTree, chosen: Tensor) -> DraftTree:
        self.watch(tree)
        return rerank(tree, self.num_kept)


class _Gains:
    """What trees bring: drafted tokens accepted, by depth and size."""

    def __init__(self, largest: TreeShape) -> None:
        self._largest = largest
        self.fresh = False
        """Candidates were noted that are still to be read."""
        self._expected: Tensor | None = None  # [depth, total] tokens that a tree so deep and large brings by its values
        self._values: list[list[float]] = []  # the same as last read
        self._believed, self._accepted = 0.0, 0.0  # tokens that values promised and that came, recent ones above all
        self._chosen, self._promise = Fastest(0, 0, 0.0), 0.0  # what values promise of one tree of the chosen size
        self._seen, self._looked_at = 0, 1  # accepted of the last look, and how many nodes it had

    @property
    def known(self) -> bool:
        """Whether there is an estimate; none yet where all looks were cut short."""
        return bool(self._values)

    def note_candidates(self, tree: DraftTree) -> None:
        """Take the values of a largest tree's candidates into the estimate; stays on the device."""
        if tree.max_depth < self._largest.depth:
            return  # cut short by the end of the budget
        depth = torch.arange(1, self._largest.depth + 1, device=tree.depth.device)[:, None]  # [depth, 1]
        values = tree.log_value.exp() * (tree.depth[None] <= depth)  # [depth, nodes]
        best = values.topk(min(self._largest.total, tree.num_nodes), dim=1).values.cumsum(dim=1)  # [depth, total]
        self._expected = best if self._expected is None else _KEEP * self._expected + (1 - _KEEP) * best
        self.fresh = True

    def note_accepted(self, tree: DraftTree, num_accepted: int, *, looking: bool) -> None:
        """How much of a tree was accepted: of a look, or of one of the chosen size that no budget cut short."""
        if looking:
            self._seen, self._looked_at = num_accepted, tree.num_nodes
        elif tree.max_depth == self._chosen.depth:
            self._accepted += num_accepted
            self._believed += self._promise

    def read(self) -> None:
        """Copy the estimate to the host after a look; what came before it counts less."""
        assert self._expected is not None
        self.fresh = False
        self._values = self._expected.tolist()
        self._believed = _KEEP * self._believed + self._values[-1][self._looked_at - 1]
        self._accepted = _KEEP * self._accepted + self._seen

    def best(self, costs: Costs) -> Fastest:
        """The tree with the most tokens per second, by what was read last."""
        trust = (self._accepted + _PRIOR) / (self._believed + _PRIOR)
        self._chosen = fastest(costs, [[value * trust for value in row] for row in self._values])
        self._promise = self._values[self._chosen.depth - 1][self._chosen.total - 1]
        return self._chosen


@dataclass(frozen=True, slots=True)
class _Lasted:
    """A cycle that is over."""

    depth: int
    num_nodes: int
    draft_s: float
    rest_s: float


class _Clock:
    """Corrects the measured costs by what cycles of the text took."""

    def __init__(self) -> None:
        self._drafting: deque[float] = deque(maxlen=_PAIRS)  # seconds over those measured
        self._verifying: dict[int, deque[float]] = {}  # by powers of two of rows: what they add, over that measured
        self._tree = 0, 0  # depth and nodes of the cycle under way
        self._before: _Lasted | None = None

    def drafted(self, tree: DraftTree) -> None:
        """The tree of the cycle under way."""
        self._tree = tree.max_depth, tree.num_nodes

    def lasted(self, costs: Costs, seconds: Mapping[Part, float], *, compare: bool) -> None:
        """The cycle is over; compare it with the one before if one of the two drafted and the other did not.

        Not a look: after plain cycles its drafter has their tokens to catch up on.
        """
        draft_s = seconds["draft"]
        before, now = self._before, _Lasted(*self._tree, draft_s, sum(seconds.values()) - draft_s)
        self._before = now if compare else None
        if not compare or before is None or (before.num_nodes == 0) == (now.num_nodes == 0):
            return
        plain, tree = (before, now) if before.num_nodes == 0 else (now, before)
        speed = costs.verify(1) / (plain.draft_s + plain.rest_s)  # measured seconds for one of this moment's
        depth, rows = min(tree.depth, len(costs.draft_s) - 1), 1 + tree.num_nodes
        self._drafting.append(_within(tree.draft_s * speed / max(costs.draft_s[depth], 1e-9)))
        added = tree.rest_s * speed / costs.verify(1) - 1
        self._verifying.setdefault(_power(rows), deque(maxlen=_PAIRS)).append(_within(added / _added(costs, rows)))

    def corrected(self, costs: Costs) -> Costs:
        """Costs in seconds of the moment when they were measured."""
        drafting = statistics.median(self._drafting) if self._drafting else 1.0
        plain_s = costs.verify(1)
        verify_s = [(rows, plain_s * (1 + self._times(rows) * _added(costs, rows))) for rows, _ in costs.verify_s[1:]]
        draft_s = tuple(seconds * drafting for seconds in costs.draft_s)
        return Costs((costs.verify_s[0], *verify_s), draft_s)

    def _times(self, rows: int) -> float:
        """How many times what was measured so many rows add to a pass: as seen at the nearest number of rows."""
        if not self._verifying:
            return 1.0
        nearest = min(self._verifying, key=lambda power: abs(power - _power(rows)))
        return statistics.median(self._verifying[nearest])


def _added(costs: Costs, rows: int) -> float:
    """What rows beyond the first add to a pass, in passes over one row; a little even if they were measured as free."""
    return max(_LEAST_ADDED, costs.verify(rows) / costs.verify(1) - 1)


def _power(rows: int) -> int:
    return round(math.log2(rows))


def _within(times: float) -> float:
    """A correction within bounds: one slow moment must not rule out a size for good."""
    return min(max(times, 1 / _MOST_TIMES), _MOST_TIMES)
