"""What passes cost on this device: measured once, so that drafts can be sized by it."""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from slipstream.core.tree import ancestor_mask
from slipstream.target.target import Target

_ROUNDS = 5
_PREFIX = 64  # tokens in the cache while verification is timed
_QUICK_ROUNDS = 2, 5  # at least and at most, the first of which warms up
_QUICK_S = 0.2  # no further round begins after so many seconds
_MOMENT, _SETTLED = 0.3, 0.05  # weight of a cycle in what the machine is like now, and at last in the price of a size
_ALIKE = 0.6  # of a correction to a price, for that of the next size, and so on
_FREE = 0.02  # log of a price that is none
_SURPRISE = 0.15  # log of the factor that a single cycle may speak for


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one cycle's parts."""

    verify_s: tuple[tuple[int, float], ...]
    """(rows of a target pass, seconds), ascending, the first for one row."""
    draft_s: tuple[float, ...]
    """Seconds to draft a tree of 0, 1, 2, ... levels; the first is 0."""

    def verify(self, rows: int) -> float:
        """Seconds of a target pass over `rows` rows, between two measured sizes on the line through them."""
        points = self.verify_s
        if len(points) == 1:
            return points[0][1]
        (low, low_s), (high, high_s) = next(
            (pair for pair in pairwise(points) if rows <= pair[1][0]), (points[-2], points[-1])
        )
        return low_s + (high_s - low_s) * (rows - low) / (high - low)


def measure_costs(target: Target, largest: int, depth: int, draft: Callable[[int], Any]) -> Costs:
    """What verifying up to `largest` rows and drafting up to `depth` levels cost; takes a few dozen passes.

    draft(levels): drafts a tree so deep. Its first level has a price of its own, each further one costs the same.
    """
    sizes = _powers(largest)
    verify = _verification(target, sizes)
    calls = [*(partial(verify, rows) for rows in sizes), partial(draft, 1), partial(draft, depth)]
    *verified, one, deepest = typical_s(calls, target.device)
    level = max(0.0, deepest - one) / max(1, depth - 1)
    return Costs(_ascending(sizes, verified), (0.0, *(one + level * further for further in range(depth))))


def measure_verification(target: Target, largest: int) -> tuple[tuple[int, float], ...]:
    """(rows, seconds) of target passes over 1, 2, 4, ... and `largest` rows after a short prefix."""
    sizes = _powers(largest)
    verify = _verification(target, sizes)
    return _ascending(sizes, typical_s([partial(verify, rows) for rows in sizes], target.device))


class RowPrices:
    """What a cycle takes by the rows of its pass, in plain cycles; for a few sizes, others count as the next larger.

    A quick measurement after a prefix like the text's comes first: some ten passes, the fastest of each size. Cycles
    then correct it, since passes are not all that a cycle takes: one that takes longer than its price says, beside what
    the cycles just before it took, raises the price of its size and of those like it. A slow moment of the machine
    falls on all sizes alike and changes none.
    """

    def __init__(self, sizes: Sequence[int], measured: Sequence[tuple[int, float]]) -> None:
        """sizes: rows that have a price, ascending from 1. measured: (rows, seconds), ascending from 1."""
        self.sizes = tuple(sizes)
        costs = Costs(tuple(measured), ())
        plain_s = costs.verify(1)
        self._log = [math.log(costs.verify(rows) / plain_s) for rows in self.sizes]
        self._noted = [0] * len(self.sizes)
        self._plain_s = math.log(plain_s)  # log of the seconds that a plain cycle takes at this moment
        self.prices = self._ascending()
        """Of each size; the first is 1."""

    def of(self, rows: int) -> float:
        """The price of a pass over so many rows."""
        return self.prices[self._place(rows)]

    def note(self, rows: int, seconds: float) -> None:
        """A cycle whose pass had so many rows took so long."""
        place = self._place(rows)
        surprise = math.log(seconds) - self._plain_s - self._log[place]
        self._plain_s += _MOMENT * surprise
        surprise = min(max(surprise, -_SURPRISE), _SURPRISE)
        if place:
            self._noted[place] += 1
            step = surprise * max(_SETTLED, 1 / (2 + self._noted[place]))
            for other in range(1, len(self._log)):
                self._log[other] += step * _ALIKE ** abs(other - place)
            self.prices = self._ascending()

    def stretched(self, measured: Sequence[tuple[int, float]]) -> RowPrices:
        """The same where a pass over some rows was measured again, beside one over a single row."""
        (_, plain_s), (rows, rows_s) = measured
        known, seen = self._log[self._place(rows)], math.log(rows_s / plain_s)
        prices = RowPrices(self.sizes, measured)
        if known > _FREE:
            prices._log = [log * min(max(seen / known, 0.5), 4.0) for log in self._log]
            prices.prices = prices._ascending()
        return prices

    def _place(self, rows: int) -> int:
        return min(bisect_left(self.sizes, rows), len(self.sizes) - 1)

    def _ascending(self) -> list[float]:
        return [math.exp(log) for log in accumulate(self._log, max)]


def quick_verification(target: Target, sizes: Sequence[int], prefix: int) -> tuple[tuple[int, float], ...]:
    """(rows, seconds) of target passes over so many rows, ascending, after so many tokens, in a few rounds."""
    verify = _verification(target, sizes, prefix)
    calls = [partial(verify, rows) for rows in sizes]
    began = time.perf_counter()
    rounds: list[list[float]] = []
    least, most = _QUICK_ROUNDS
    while len(rounds) < least or (len(rounds) < most and time.perf_counter() - began < _QUICK_S):
        rounds.append([_timed(call, target.device) for call in calls])
    return _ascending(sizes, [min(times) for times in zip(*rounds, strict=True)])


def _powers(largest: int) -> list[int]:
    return sorted({1, largest, *(1 << power for power in range(1, largest.bit_length()) if 1 << power < largest)})


def _verification(target: Target, sizes: Sequence[int], prefix: int = _PREFIX) -> Callable[[int], Any]:
    """The pass over so many rows, at most the last of `sizes`, after `prefix` tokens or as many as the context holds.

    What lies in the cache before them costs the same whatever it is, so only the prefix's last token is run.
    """
    device = target.device
    cache = target.new_cache(extra_slots=sizes[-1])
    prefix = min(prefix, (target.context_length or prefix + 1) - 1)
    last = torch.tensor([prefix - 1], device=device)
    visible = torch.ones(1, prefix, dtype=torch.bool, device=device)
    target.forward(torch.zeros_like(last), last, visible, cache, start=prefix - 1, last_logits_only=True)
    cache.commit(None, prefix)

    def verify(rows: int) -> Any:
        parents = torch.full((rows - 1,), -1, device=device)  # all under the root: the shape of a tree costs nothing
        positions = prefix + (torch.arange(rows, device=device) > 0).long()
        return target.forward(torch.zeros_like(positions), positions, ancestor_mask(parents), cache)

    return verify


def _ascending(sizes: Sequence[int], measured: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Costs by size: fewer rows never cost more, so where they seem to, that is noise."""
    return tuple((rows, min(measured[place:])) for place, rows in enumerate(sizes))


def typical_s(calls: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """Seconds that each call takes, its work on the device included: the median of a few, after one to warm up.

    The calls take turns, so that a slow moment of a shared machine falls on all of them alike.
    """
    for call in calls:
        call()
    rounds = [[_timed(call, device) for call in calls] for _ in range(_ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that is queued; a CPU has nothing queued."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Fastest(NamedTuple):
    """The tree with the most tokens per second."""

    depth: int
    total: int
    gain: float
    """Its tokens per second over those of plain decoding; where it is not above 1, no tree pays."""


def fastest(costs: Costs, expected: Sequence[Sequence[float]]) -> Fastest:
    """The best of all trees by what they bring and cost.

    expected[d][n]: drafted tokens accepted on average in a tree of d + 1 levels and n + 1 nodes.
    """
    plain_s = costs.verify(1)
    verify_s = [costs.verify(1 + total) for total in range(1, len(expected[0]) + 1)]

    def choices() -> Iterable[Fastest]:
        for depth, row in enumerate(expected, start=1):
            for total, (accepted, seconds) in enumerate(zip(row, verify_s, strict=True), start=1):
                yield Fastest(depth, total, (1 + accepted) * plain_s / (costs.draft_s[depth] + seconds))

    return max(choices(), key=lambda one: one.gain)
