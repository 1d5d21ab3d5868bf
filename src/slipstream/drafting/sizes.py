"""The size of a dynamic tree from measured costs: a node is worth adding while it brings more than it takes.

What a tree brings. The value of a node estimates the probability that it is accepted, so a tree is expected to bring
the sum of its nodes' values. Now and then the largest tree is grown, and from the values of *all* its candidates
follows what every smaller tree would have brought. How far values can be trusted is corrected by what was accepted.

What it takes. The costs of drafting a level and of verifying n rows are this machine's (`runtime/costs.py`). They are
of passes alone, perhaps of another day, so they are corrected by the cycles of the text itself: a plain cycle beside
one that drafted says how many plain cycles a drafting one really takes. Neighbours are compared, since a slow moment of
the machine then slows both, and trees of several sizes, since a tree may add a fixed time to a cycle beside that of its
rows. Over sizes by measured costs alone this gains 0 to 4 %: nothing on SmolLM2, most on the smallest model.

Both together give the depth and the size with the most tokens per second, or plain decoding where no tree pays. Sizes
therefore follow the clock; the tokens do not, as long as the rule is greedy or coupled.
"""

from __future__ import annotations

import math
import statistics
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from slipstream.core.tree import DraftTree
from slipstream.runtime.clock import Part
from slipstream.runtime.costs import Costs, Fastest, fastest
from slipstream.runtime.decisions import agree

_FIRST_ROUNDS = 3  # at the start
_INTERVAL = 32  # cycles from one round to the next; doubled while plain decoding stays best
_LONGEST_INTERVAL = 256
_CLEAR = 1.2  # of plain decoding's speed: where drafting is so much faster, only every third round has a plain cycle
_CHECK = 8  # cycles of drafting from one choice to the next: by what was accepted, with no new look
_KEEP = 0.7  # of the old estimate at each look
_PRIOR = 4.0  # tokens' worth of belief that values are right
_PAIRS = 5  # the latest neighbours of about one size whose median is believed
_LEAST_ADDED = 0.02  # passes over one row, by a tree of any size
_MOST_TIMES = 20.0  # of what was measured
_FIXED, _FACTOR, _NOISE = 0.3, 1.0, 0.15  # spread of what trees add beside their rows, of that of rows, of one pair

Kind = Literal["look", "trial", "plain", "best"]
"""Of a cycle. A round is a look, which grows the largest tree and shows all its candidates but has no more of them
verified than usual; then a trial, which drafts, and a plain cycle, to be compared. Trials are of the best size, of half
and of double in turn. Between rounds comes what is best."""


@dataclass(frozen=True, slots=True)
class CycleTimes:
    """What a cycle took."""

    depth: int
    """Levels drafted; 0 for a plain cycle."""
    num_nodes: int
    """Verified."""
    draft_s: float
    rest_s: float


class Size(NamedTuple):
    """Of a tree."""

    depth: int
    total: int
    look: bool = False
    """Grow the largest tree, show all its candidates to `record_candidates`, and keep `total` of them."""


class Prospect(NamedTuple):
    """What a drafting cycle is expected to bring and take."""

    tokens: float
    """Drafted ones that are accepted."""
    price: float
    """Its time in plain cycles."""

    def worth(self, pace: float) -> float:
        """Tokens beyond those that its time would bring at so many in a plain cycle's; 0 if there is none to draft."""
        return self.tokens - pace * (self.price - 1)


class SizeChooser:
    """Chooses sizes for texts of one kind, cycle by cycle: `next`, then the `record_` methods for what became of it.

    One cycle at a time: generations in several threads ask for a turn first.
    """

    def __init__(
        self, depth: int, total: int, first_total: int, among: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """depth, total: of the largest tree. first_total: nodes until more is known. among: the depths and totals that
        there are, the first of them for the beginning; None: all.
        """
        self._largest, self._any_size = Size(depth, total), among is None
        self._costs: Costs
        self._gains = _Gains(self._largest, among)
        self._corrections = _Corrections()
        self._good = Size(depth, min(total, first_total)) if among is None else Size(*among[0])  # the best of all trees
        self._gain = 1.0  # of `_good`, over plain decoding
        self._pays = True  # `_good` is better than plain decoding
        self._prospect = Prospect(0.0, 1.0)
        self._round: deque[Kind] = deque()
        self._kind: Kind = "best"
        self._tree = 0, 0  # depth and nodes of the cycle under way
        self._cycle, self._next_round, self._interval, self._rounds = 0, 0, _INTERVAL, 0
        self._lock = threading.Lock()
        self._turn: Callable[[], object | None] = _nobody

    def take_turn(self, who: object) -> bool:
        """Begin a cycle that is to be learnt from; false while another one's is not over. Never waits.

        A turn ends by `end_turn`, or with `who`: a cycle may be interrupted.
        """
        with self._lock:
            if self._turn() not in (None, who):
                return False
            self._turn = weakref.ref(who)
            return True

    def end_turn(self) -> None:
        """The cycle is over."""
        self._turn = _nobody

    def in_use(self) -> Size | None:
        """The best size as it is known, for a cycle that is not learnt from; None: decode plainly."""
        return self._good if self._pays else None

    def prospect(self) -> Prospect | None:
        """Of the best size, or of none; None while a round is due, which shows it."""
        due = self._round or self._cycle >= self._next_round or not self._gains.known
        return None if due else self._prospect

    def price(self, costs: Costs, depth: int, num_nodes: int) -> float:
        """Of a cycle with such a tree, in plain ones."""
        costs = self._corrections.corrected(costs)
        return (costs.draft_s[depth] + costs.verify(1 + num_nodes)) / costs.verify(1)

    def next(self, costs: Costs) -> Size | None:
        """The size of this cycle; None: decode plainly. costs: as they were measured."""
        self._costs = costs
        if self._cycle >= self._next_round:
            self._begin_round()
        self._cycle += 1
        self._kind = self._round.popleft() if self._round else "best"
        if self._kind == "look":
            return self._good._replace(look=True)
        if self._kind == "trial":
            return self._trial()
        return self._good if self._kind == "best" and self._pays else None

    def record_candidates(self, tree: DraftTree) -> None:
        """All nodes that a look attached."""
        self._gains.record_candidates(tree)

    def record_tree(self, tree: DraftTree, num_accepted: int) -> None:
        """What became of the cycle's tree, an empty one included."""
        self._tree = tree.max_depth, tree.num_nodes
        self._gains.record_accepted(tree, num_accepted, looking=self._kind == "look")

    def record_times(self, seconds: Mapping[Part, float], before: CycleTimes | None) -> CycleTimes | None:
        """What the cycle took, by part, or {}. After a look, copies its estimate to the host.

        before: the same of the cycle before it, if that is one to compare with. Returns this one's, unless it is not:
        after plain cycles a look's drafter has their tokens to catch up on.
        """
        times = None
        if seconds:
            times = CycleTimes(*self._tree, seconds["draft"], sum(seconds.values()) - seconds["draft"])
        looked, self._kind = self._kind == "look", "best"
        if before is not None and times is not None and not looked:
            self._corrections.compare(self._costs, before, times)
        if self._gains.fresh:
            self._gains.copy_to_host()
            self._decide()
            if self._rounds >= _FIRST_ROUNDS:
                self._interval = _INTERVAL if self._pays else min(2 * self._interval, _LONGEST_INTERVAL)
                self._next_round = self._cycle + self._interval
        elif self._pays and self._gains.known and self._cycle % _CHECK == 0:
            self._decide()
        return None if looked else times

    def _begin_round(self) -> None:
        self._rounds += 1
        timed = self._gain < _CLEAR or self._rounds <= _FIRST_ROUNDS or self._rounds % 3 == 0
        self._round = deque(("look", "trial", "plain") if timed else ("look",))
        self._next_round = self._cycle + (len(self._round) if self._rounds < _FIRST_ROUNDS else self._interval)

    def _trial(self) -> Size:
        """The best size, and in other rounds half and double of it."""
        times = self._corrections.num_compared % 4 if self._any_size else 0
        if times == 1:
            return self._good._replace(total=min(2 * self._good.total, self._largest.total))
        if times == 3:
            half = max(1, self._good.total // 2)
            return Size(min(self._good.depth, half), half)
        return self._good

    def _decide(self) -> None:
        """Choose the size anew."""
        found = agree(self._gains.best(self._corrections.corrected(self._costs)))
        self._gain, self._pays = found.gain, found.gain > 1
        self._good = Size(found.depth, found.total)
        price = self.price(self._costs, *self._good[:2])
        self._prospect = Prospect(found.gain * price - 1, price) if self._pays else Prospect(0.0, 1.0)


def _nobody() -> None:
    return None


class _Gains:
    """What trees bring: drafted tokens accepted, by depth and size."""

    def __init__(self, largest: Size, among: Sequence[tuple[int, int]] | None) -> None:
        self._largest, self._among = largest, among
        self.fresh = False
        """Candidates were recorded that are still to be copied."""
        self._expected: Tensor | None = None  # [depth, total] tokens that a tree so deep and large brings by its values
        self._values: list[list[float]] = []  # the same as last copied
        self._believed, self._accepted = 0.0, 0.0  # tokens that values promised and that came, recent ones above all
        self._chosen, self._promise = Fastest(0, 0, 0.0), 0.0  # what values promise of one tree of the chosen size
        self._look = 0, 0  # nodes of the last look, and how many were accepted

    @property
    def known(self) -> bool:
        """Whether there is an estimate; none yet where all looks were cut short."""
        return bool(self._values)

    def record_candidates(self, tree: DraftTree) -> None:
        """Take the values of a largest tree's candidates into the estimate; stays on the device."""
        if tree.max_depth < self._largest.depth:
            return  # cut short by the end of the budget
        depth = torch.arange(1, self._largest.depth + 1, device=tree.depth.device)[:, None]  # [depth, 1]
        values = tree.log_value.exp() * (tree.depth[None] <= depth)  # [depth, nodes]
        best = values.topk(min(self._largest.total, tree.num_nodes), dim=1).values.cumsum(dim=1)  # [depth, total]
        self._expected = best if self._expected is None else _KEEP * self._expected + (1 - _KEEP) * best
        self.fresh = True

    def record_accepted(self, tree: DraftTree, num_accepted: int, *, looking: bool) -> None:
        """How much of a tree was accepted: of a look, or of one of the chosen size that nothing cut short."""
        if looking:
            self._look = tree.num_nodes, num_accepted
        elif (tree.max_depth, tree.num_nodes) == self._chosen[:2]:
            self._accepted += num_accepted
            self._believed += self._promise

    def copy_to_host(self) -> None:
        """Copy the estimate to the host after a look; what came before it counts less."""
        assert self._expected is not None
        self.fresh = False
        self._values = self._expected.tolist()
        num_nodes, num_accepted = self._look
        self._believed = _KEEP * self._believed + (self._values[-1][num_nodes - 1] if num_nodes else 0.0)
        self._accepted = _KEEP * self._accepted + num_accepted

    def best(self, costs: Costs) -> Fastest:
        """The tree with the most tokens per second, by what was copied last."""
        trust = (self._accepted + _PRIOR) / (self._believed + _PRIOR)
        self._chosen = fastest(costs, [[value * trust for value in row] for row in self._values], self._among)
        self._promise = self._values[self._chosen.depth - 1][self._chosen.total - 1]
        return self._chosen


class _Corrections:
    """What drafting and verifying take beside a plain cycle, against what the measured costs say that they take."""

    def __init__(self) -> None:
        self._drafting: deque[float] = deque(maxlen=_PAIRS)  # times of what was measured
        self._verifying: dict[int, deque[tuple[float, float]]] = {}  # by powers of two of rows: measured, seen addition
        self.num_compared = 0

    def compare(self, costs: Costs, one: CycleTimes, other: CycleTimes) -> None:
        """Take in two neighbours, if one of them drafted and the other did not."""
        if (one.num_nodes == 0) == (other.num_nodes == 0):
            return
        plain, tree = (one, other) if one.num_nodes == 0 else (other, one)
        speed = costs.verify(1) / (plain.draft_s + plain.rest_s)  # measured seconds for one of this moment's
        rows = 1 + tree.num_nodes
        self._drafting.append(_within(tree.draft_s * speed / max(costs.draft_s[tree.depth], 1e-9)))
        seen = tree.rest_s * speed / costs.verify(1) - 1
        self._verifying.setdefault(round(math.log2(rows)), deque(maxlen=_PAIRS)).append((_added(costs, rows), seen))
        self.num_compared += 1

    def corrected(self, costs: Costs) -> Costs:
        """Costs in seconds of the moment when they were measured."""
        drafting = statistics.median(self._drafting) if self._drafting else 1.0
        draft_s = tuple(seconds * drafting for seconds in costs.draft_s)
        fixed, factor = self._fitted()
        (one, plain_s), *larger = costs.verify_s
        added = [(rows, max(_LEAST_ADDED, fixed + factor * _added(costs, rows))) for rows, _ in larger]
        return Costs(((one, plain_s), *((rows, plain_s * (1 + more)) for rows, more in added)), draft_s)

    def _fitted(self) -> tuple[float, float]:
        """(f, m): a tree adds f + m times what was measured of its rows, in passes over one row.

        Least squares over the medians of about equal sizes, drawn to (0, 1) by the spreads one would expect: of trees
        of one size it cannot be told whether they or their rows are dear.
        """
        aa, ab, bb, ya, yb = 1 / _FIXED**2, 0.0, 1 / _FACTOR**2, 0.0, 0.0
        for pairs in self._verifying.values():
            measured, seen = (statistics.median(values) for values in zip(*pairs, strict=True))
            weight = len(pairs) / (_NOISE * (1 + max(measured, seen))) ** 2
            aa, ab, bb = aa + weight, ab + weight * measured, bb + weight * measured**2
            ya, yb = ya + weight * (seen - measured), yb + weight * measured * (seen - measured)
        determinant = aa * bb - ab * ab
        return (bb * ya - ab * yb) / determinant, _within(1 + (aa * yb - ab * ya) / determinant)


def _added(costs: Costs, rows: int) -> float:
    """What rows beyond the first add to a pass by measurement, in passes over one row."""
    return costs.verify(rows) / costs.verify(1) - 1


def _within(times: float) -> float:
    """A factor within bounds: one slow moment must not rule out a size for good."""
    return min(max(times, 1 / _MOST_TIMES), _MOST_TIMES)
