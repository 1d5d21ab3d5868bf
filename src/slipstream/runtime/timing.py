"""Timing calls against each other, and the passes of a target that are timed.

The machine may be busy, and busier at one moment than at the next. So calls take turns, round by round: a slow moment
falls on all of them alike, and their medians can be compared with each other. Every time that the package measures
ahead of decoding is taken here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from slipstream.core.tree import ancestor_mask
from slipstream.runtime.decisions import agree
from slipstream.target.target import Target

Call = Callable[[], Any]


def rounds_of(calls: Sequence[Call], device: torch.device, *, budget_s: float, most: int = 7) -> list[list[float]]:
    """By call, its seconds in every round, work on the device included.

    A first round warms up and is left out. Two are timed in any case, and then as many, up to `most`, as end within
    `budget_s` seconds, the first included.
    """
    began = time.perf_counter()
    rounds: list[list[float]] = []
    while len(rounds) < 3 or (len(rounds) <= most and agree(_after_another(began, len(rounds)) <= budget_s)):
        rounds.append([timed(call, device) for call in calls])
    return [list(times) for times in zip(*rounds[1:], strict=True)]


def _after_another(began: float, num_rounds: int) -> float:
    """Seconds that will have passed after one more round like those before it."""
    return (time.perf_counter() - began) * (num_rounds + 1) / num_rounds


def timed(call: Call, device: torch.device) -> float:
    """Seconds of one call, its work on the device included."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that is queued; a CPU has nothing queued."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def medians(times: Sequence[Sequence[float]]) -> list[float]:
    """The median of each call's times; of an even number the lower of the middle two."""
    return [statistics.median_low(one) for one in times]


def spread(times: Sequence[Sequence[float]]) -> float:
    """How unquiet the machine was: by how much a call's median lies above its least time, in the median of all calls.

    0.1: a tenth above it.
    """
    return statistics.median(statistics.median(one) / min(one) for one in times) - 1


class Passes:
    """Passes of the target after `context` cached tokens, or as many as its context has room for."""

    def __init__(self, target: Target, most_rows: int, context: int) -> None:
        self._target, self.context = target, fitting(target, context)
        self._cache = target.new_cache(extra_slots=most_rows)
        last = torch.tensor([self.context - 1], device=target.device)
        visible = torch.ones(1, self.context, dtype=torch.bool, device=target.device)
        # What lies in the cache before it costs the same whatever it is, so only the last token is run.
        start = self.context - 1
        target.forward(torch.zeros_like(last), last, visible, self._cache, start=start, last_logits_only=True)
        self._cache.commit(None, self.context)

    def run(self, rows: int, model: Any = None) -> Any:
        """A pass over a root and `rows - 1` children of it. model: to run instead of the target's own, a shadow."""
        device = self._target.device
        parents = torch.full((rows - 1,), -1, device=device)  # all under the root: the shape of a tree costs nothing
        positions = self.context + (torch.arange(rows, device=device) > 0).long()
        visible = ancestor_mask(parents)
        return self._target.forward(torch.zeros_like(positions), positions, visible, self._cache, instead=model)

    def call(self, rows: int) -> Call:
        """`run` of so many rows."""
        return partial(self.run, rows)


def fitting(target: Target, context: int) -> int:
    """So many cached tokens, or as many as leave room for one more."""
    return context if target.context_length is None else max(1, min(context, target.context_length - 1))
