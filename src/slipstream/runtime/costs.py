"""What passes cost on this device: measured once, so that drafts can be sized by it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from slipstream.core.tree import ancestor_mask
from slipstream.target.target import Target

_ROUNDS = 5
_PREFIX = 64  # tokens in the cache while verification is timed


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
    sizes, verify = _verification(target, largest)
    calls = [*(partial(verify, rows) for rows in sizes), partial(draft, 1), partial(draft, depth)]
    *verified, one, deepest = typical_s(calls, target.device)
    level = max(0.0, deepest - one) / max(1, depth - 1)
    return Costs(_ascending(sizes, verified), (0.0, *(one + level * further for further in range(depth))))


def measure_verification(target: Target, largest: int) -> tuple[tuple[int, float], ...]:
    """(rows, seconds) of target passes over 1, 2, 4, ... and `largest` rows after a short prefix."""
    sizes, verify = _verification(target, largest)
    return _ascending(sizes, typical_s([partial(verify, rows) for rows in sizes], target.device))


def _verification(target: Target, largest: int) -> tuple[list[int], Callable[[int], Any]]:
    """The sizes to be measured, and the pass over so many rows."""
    sizes = sorted({1, largest, *(1 << power for power in range(1, largest.bit_length()) if 1 << power < largest)})
    device = target.device
    cache = target.new_cache(extra_slots=largest)
    prefix = min(_PREFIX, (target.context_length or _PREFIX) - 1)
    tokens = torch.zeros(prefix, dtype=torch.int64, device=device)
    target.forward(tokens, torch.arange(prefix, device=device), target.causal(prefix), cache, last_logits_only=True)
    cache.commit(None, prefix)

    def verify(rows: int) -> Any:
        parents = torch.full((rows - 1,), -1, device=device)  # all under the root: the shape of a tree costs nothing
        positions = prefix + (torch.arange(rows, device=device) > 0).long()
        return target.forward(torch.zeros_like(positions), positions, ancestor_mask(parents), cache)

    return sizes, verify


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
