"""What passes cost on this device: measured once, so that drafts can be sized by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from slipstream.target import Target
from slipstream.tree import ancestor_mask

_REPEATS = 5
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


def measure_verification(target: Target, largest: int) -> tuple[tuple[int, float], ...]:
    """(rows, seconds) of target passes over 1, 2, 4, ... and `largest` rows after a short prefix."""
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

    measured = [time_s(partial(verify, rows), device) for rows in sizes]
    seconds = [min(measured[place:]) for place in range(len(sizes))]  # fewer rows never cost more: the rest is noise
    return tuple(zip(sizes, seconds, strict=True))


def time_s(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, its work on the device included: the least of a few, after one to warm up."""
    call()
    return min(_timed(call, device) for _ in range(_REPEATS))


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


def fastest(costs: Costs, expected: Iterable[Iterable[float]]) -> tuple[int, int]:
    """(depth, total) of the tree with the most tokens per second; (0, 0): plain decoding is faster than any.

    expected[d][n]: drafted tokens accepted on average in a tree of d + 1 levels and n + 1 nodes.
    """
    best, best_rate = (0, 0), 1 / costs.verify(1)
    for depth, row in enumerate(expected, start=1):
        for total, accepted in enumerate(row, start=1):
            rate = (1 + accepted) / (costs.draft_s[depth] + costs.verify(1 + total))
            if rate > best_rate:
                best, best_rate = (depth, total), rate
    return best
