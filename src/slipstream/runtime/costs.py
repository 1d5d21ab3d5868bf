"""What passes cost on this machine: the one model of it, for all that is sized, searched or predicted by cost.

A target pass has a price by its rows and by the tokens already cached (its context), a drafter's level one by its
width. A few sizes are measured (`timing.py`), once for a machine (`kept_costs.py`); others lie on the line between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from slipstream.runtime.decisions import agree
from slipstream.runtime.timing import Passes, fitting, medians, rounds_of, spread, timed
from slipstream.target.target import Target

ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Of the passes that are timed after a short context, ..."""
_LONG_ROWS = (1, 4, 16)  # ... and after a long one, where others follow from what it adds to these
_SHORT, _LONG = 64, 1024  # cached tokens
BUDGET_S = 2.5
"""Seconds in which a target's passes are measured."""
_SLOW = 50  # passes over one row whose time must fit into that, else fewer sizes are timed
_FEW_ROWS = (1, 8)
_DRAFT_BUDGET_S = 0.5

Points = tuple[tuple[int, float], ...]
"""(size, seconds), ascending by size."""


def on_line(points: Points, size: float) -> float:
    """The seconds at a size: between two points on the line through them, outside on that through the nearest two."""
    if len(points) == 1:
        return points[0][1]
    (low, low_s), (high, high_s) = next(
        (pair for pair in pairwise(points) if size <= pair[1][0]), (points[-2], points[-1])
    )
    return low_s + (high_s - low_s) * (size - low) / (high - low)


@dataclass(frozen=True, slots=True)
class PassCosts:
    """Seconds of a target's passes."""

    by_context: tuple[tuple[int, Points], ...]
    """(cached tokens, (rows, seconds) of passes after them), ascending by both."""

    def at(self, context: int) -> Points:
        """(rows, seconds) after so many cached tokens."""
        rows = [rows for rows, _ in self.by_context[0][1]]
        return tuple((one, self.seconds(one, context)) for one in rows)

    def seconds(self, rows: int, context: int) -> float:
        """Of a pass over so many rows after so many cached tokens."""
        points = tuple((known, on_line(seconds, rows)) for known, seconds in self.by_context)
        return on_line(points, max(context, points[0][0]))

    def to_json(self) -> list[Any]:
        """As JSON values."""
        return [[context, [list(point) for point in points]] for context, points in self.by_context]

    @classmethod
    def from_json(cls, values: Any) -> PassCosts:
        """What `to_json` made. Raises ValueError or TypeError for anything else."""
        by_context = tuple((int(context), _points(points)) for context, points in values)
        _check_ascending([context for context, _ in by_context])
        return cls(by_context)


@dataclass(frozen=True, slots=True)
class LevelCosts:
    """Seconds to draft with one drafter, by level."""

    width: int
    """Rows of every level but the first, which has one."""
    first_s: float
    """To draft one level, what came of the last cycle taken in."""
    further_s: float
    """To draft one level more."""

    def to_json(self) -> list[Any]:
        """As JSON values."""
        return [self.width, self.first_s, self.further_s]

    @classmethod
    def from_json(cls, values: Any) -> LevelCosts:
        """What `to_json` made. Raises ValueError or TypeError for anything else."""
        width, *seconds = values
        first_s, further_s = map(_positive, seconds)
        return cls(int(width), first_s, further_s)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one cycle's parts."""

    verify_s: Points
    """(rows of a target pass, seconds), ascending, the first for one row."""
    draft_s: tuple[float, ...]
    """Seconds to draft a tree of 0, 1, 2, ... levels; the first is 0."""

    @classmethod
    def of(cls, passes: PassCosts, levels: LevelCosts, *, context: int, depth: int) -> Costs:
        """Of cycles after so many cached tokens, with up to `depth` levels."""
        drafting = (levels.first_s + levels.further_s * further for further in range(depth))
        return cls(passes.at(context), (0.0, *drafting))

    def verify(self, rows: int) -> float:
        """Seconds of a target pass over `rows` rows."""
        return on_line(self.verify_s, rows)


class Measured(NamedTuple):
    """Costs as they were found."""

    costs: Any
    seconds: float
    """That measuring took."""
    spread: float
    """How unquiet the machine was (`timing.spread`)."""


def measure_passes(target: Target, budget_s: float = BUDGET_S) -> Measured:
    """`PassCosts` up to `ROWS` and 1024 cached tokens, in about `budget_s` seconds.

    Where a pass over one row takes so long that they would not suffice (0.05 s for 2.5 s), only passes over one and
    eight rows are timed, and a longer context is taken to cost nothing more: that takes as long as ten plain passes.
    """
    began = time.perf_counter()
    contexts = sorted({fitting(target, context) for context in (_SHORT, _LONG)})
    passes, *longer = (Passes(target, ROWS[-1], context) for context in contexts)
    one_s = min(timed(passes.call(1), target.device) for _ in range(2))
    rows: Sequence[int] = ROWS
    if agree(one_s * _SLOW > budget_s):
        rows, longer = _FEW_ROWS, []
    calls = [passes.call(one) for one in rows] + [place.call(one) for place in longer for one in _LONG_ROWS]
    budget_s -= time.perf_counter() - began
    target.executor.settle(calls)
    times = rounds_of(calls, target.device, budget_s=budget_s)
    found = medians(times)
    short = _ascending(rows, found[: len(rows)])
    curves = [(passes.context, short)]
    curves += [(place.context, _after_more(short, found[len(rows) :])) for place in longer]
    return agree(Measured(PassCosts(tuple(curves)), time.perf_counter() - began, spread(times)))


def measure_levels(device: torch.device, width: int, depth: int, draft: Callable[[int], Any]) -> Measured:
    """`LevelCosts` of a drafter. draft(levels): drafts a tree so deep, every further level of `width` rows."""
    began = time.perf_counter()
    times = rounds_of([partial(draft, 1), partial(draft, depth)], device, budget_s=_DRAFT_BUDGET_S)
    one, deepest = medians(times)
    further = max(0.0, deepest - one) / max(1, depth - 1)
    return agree(Measured(LevelCosts(width, one, further), time.perf_counter() - began, spread(times)))


def _ascending(sizes: Sequence[int], measured: Sequence[float]) -> Points:
    """Costs by size: fewer rows never cost more, so where they seem to, that is noise."""
    return tuple((rows, min(measured[place:])) for place, rows in enumerate(sizes))


def _after_more(short: Points, measured: Sequence[float]) -> Points:
    """Costs after a longer context, where `_LONG_ROWS` were timed: what it adds to a pass grows with the rows."""
    beyond = [max(0.0, seconds - on_line(short, rows)) for rows, seconds in zip(_LONG_ROWS, measured, strict=True)]
    added = _ascending(_LONG_ROWS, beyond)
    return tuple((rows, seconds + on_line(added, rows)) for rows, seconds in short)


def _points(values: Any) -> Points:
    points = tuple((int(size), _positive(seconds)) for size, seconds in values)
    _check_ascending([size for size, _ in points])
    return points


def _check_ascending(sizes: Sequence[int]) -> None:
    if not sizes or any(one >= other for one, other in pairwise(sizes)):
        raise ValueError("sizes do not ascend")


def _positive(value: Any) -> float:
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{value} is no time")
    return seconds


class Fastest(NamedTuple):
    """The tree with the most tokens per second."""

    depth: int
    total: int
    gain: float
    """Its tokens per second over those of plain decoding; where it is not above 1, no tree pays."""


def fastest(
    costs: Costs, expected: Sequence[Sequence[float]], among: Collection[tuple[int, int]] | None = None
) -> Fastest:
    """The best of all trees by what they bring and cost.

    expected[d][n]: drafted tokens accepted on average in a tree of d + 1 levels and n + 1 nodes. among: the (levels,
    nodes) that there are; None: all.
    """
    plain_s = costs.verify(1)
    verify_s = [costs.verify(1 + total) for total in range(1, len(expected[0]) + 1)]

    def choices() -> Iterable[Fastest]:
        for depth, row in enumerate(expected, start=1):
            for total, (accepted, seconds) in enumerate(zip(row, verify_s, strict=True), start=1):
                if among is None or (depth, total) in among:
                    yield Fastest(depth, total, (1 + accepted) * plain_s / (costs.draft_s[depth] + seconds))

    return max(choices(), key=lambda one: one.gain)
