"""A skip set refined while it is in use, without an off-line search.

As SWIFT (arXiv 2410.06916) and CLaSp (arXiv 2505.24196) do, the set follows the text; unlike them it is judged by
modelled speed, the expected tokens of a cycle over its measured cost, and not by likeness to the target alone.

How well a set drafts is read off one pass over tokens that were already accepted (`comparison.py`): its score of a
token is the log-probability it gives to it, cut off where the token is surely missed and where it is surely drafted. On
688 tokens of the demo target and 28 changes of one sub-layer, mean scores told sets apart 1.6 to 2 times as sharply as
counts of drafted tokens, and correlated with those counts at 0.99 and more; the cut-offs were chosen on the same
tokens. What a nat is worth in acceptance is learnt from the same passes. From the comparisons follow the effects of the
single sub-layers (`effects.py`); a draw from them proposes the next candidate, and a candidate is taken into use once
it is faster even one standard deviation below its mean. None of this can change a token: the set decides what is
drafted, the target what is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from slipstream.errors import InputError
from slipstream.methods.layer_skip.effects import Effects
from slipstream.methods.layer_skip.theory import acceptance_of, chain_tokens
from slipstream.runtime.sublayer_costs import CostTable
from slipstream.skipping.library import ADAPTIVE
from slipstream.skipping.skip_set import SkipSet

FEWEST_ROWS = 16
"""Accepted tokens that a comparison needs at least."""

_FIRST_CYCLES = 8  # cycles before acceptance is known well enough to model speed
_KEEP = 0.97  # of the averages over cycles, at each cycle
_FLIPS = 4  # sub-layers in which a candidate may differ
_SLOPE, _SLOPE_WEIGHT = 0.2, 0.25  # acceptance lost per nat: first guess (the demo's), and its weight in nats squared
_KEEP_SLOPE = 0.99  # of what is known of that, at each comparison
_MOST_CREDIT = 4  # passes' worth of overhead that may be saved up


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSettings:
    """How a skip set is adapted."""

    overhead: float = 0.05
    """Share of a generation's time that comparisons may take, by the measured costs of passes."""
    trial_rows: int = 64
    """Accepted tokens on which sets are compared, at most."""

    def __post_init__(self) -> None:
        if isinstance(self.overhead, bool) or not isinstance(self.overhead, int | float) or not 0 < self.overhead < 1:
            raise InputError(f"layer-skip overhead is {self.overhead!r}; it must lie between 0 and 1, such as 0.05")
        if not isinstance(self.trial_rows, int) or not FEWEST_ROWS <= self.trial_rows <= 1024:
            raise InputError(f"layer-skip trial_rows is {self.trial_rows!r}; it must be from {FEWEST_ROWS} to 1024")


def adapt_settings(options: Mapping[str, Any]) -> AdaptSettings | None:
    """The settings that options of layer-skip ask for; None where the set is to stay as it is.

    Raises InputError for an option of adaptation without adaptation, or a bad value.
    """
    own = {field.name: options[field.name] for field in fields(AdaptSettings) if field.name in options}
    skip_set = options.get("skip_set")
    if isinstance(skip_set, str | Path) and str(skip_set) == ADAPTIVE:
        return AdaptSettings(**own)
    if unread := [*own, *(["start_set"] if "start_set" in options else [])]:
        raise InputError(f"option {unread[0]!r} of layer-skip is read only with skip_set={ADAPTIVE!r}")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonResult:
    """How a candidate did against the set in use, on the same tokens."""

    difference: float
    """Mean score of the candidate minus that of the set in use."""
    variance: float
    """Of that mean."""
    hits: float
    """The same difference in the share of tokens that were among the `num_children` most probable ones."""


class AdaptiveSkipSet:
    """The set in use and what is known of others. Carried over from generation to generation, like the exit threshold.
    Generations in several threads share it: what changes it is done under its `lock`, which no pass is made under but
    those that measure.

    Sub-layers are numbered here: attention of layer i is i, its MLP is num_layers + i.
    """

    def __init__(self, start: SkipSet, settings: AdaptSettings, level_rows: int = 1, num_children: int = 1) -> None:
        """level_rows: rows of every draft pass but the first, which has one. num_children: drafted after a node."""
        self.start = self.current = start
        self.settings, self.level_rows, self.num_children = settings, level_rows, num_children
        self.lock = threading.RLock()
        self.costs: CostTable | None = None
        """To be measured before the first cycle, for passes of 1, `level_rows` and `trial_rows` rows at least."""
        self.effects = Effects(2 * start.num_layers, mean=2 / start.num_layers, sd=2 / start.num_layers)
        self.num_cycles = self.num_passes = self.num_changes = 0
        self.cycles_s = self.comparisons_s = 0.0
        """Time of all cycles and of all passes for comparisons, by the measured costs."""
        self._credit_s = 0.0
        self._weight = self._accepted = self._depth = self._nodes = 0.0  # fading sums over cycles
        self._slope, self._slope_weight = _SLOPE * _SLOPE_WEIGHT, _SLOPE_WEIGHT  # fading sums over comparisons
        self._random = torch.Generator().manual_seed(0)

    # -- what cycles tell --------------------------------------------------------------------------------------------

    def record_cycle(self, num_accepted: int, depth: int, num_nodes: int) -> None:
        """A draft so deep and large was verified; it earns comparisons their time."""
        self._weight = _KEEP * self._weight + 1.0
        self._accepted = _KEEP * self._accepted + num_accepted
        self._depth = _KEEP * self._depth + depth
        self._nodes = _KEEP * self._nodes + num_nodes
        self.num_cycles += 1
        spent, share = self.seconds(self.current), self.settings.overhead
        self.cycles_s += spent
        self._credit_s = min(self._credit_s + spent * share / (1 - share), _MOST_CREDIT * self._most_comparison_s)

    @property
    def depth(self) -> float:
        """Mean length of the longest drafted path."""
        return self._depth / self._weight

    @property
    def acceptance(self) -> float:
        """Probability that the next drafted token is accepted: what gives the observed tokens a cycle."""
        return acceptance_of(1.0 + self._accepted / self._weight, self.depth)

    def can_afford_comparison(self) -> bool:
        """Whether cycles have earned a pass over `trial_rows` rows, and said enough to judge it by."""
        return self.num_cycles >= _FIRST_CYCLES and self._credit_s >= self._most_comparison_s

    def pay(self, skip_set: SkipSet, rows: int) -> None:
        """A pass for a comparison is run."""
        seconds = self._costs.draft(rows, skip_set)
        self._credit_s -= seconds
        self.comparisons_s += seconds
        self.num_passes += 1

    # -- the model of speed ------------------------------------------------------------------------------------------

    @property
    def _costs(self) -> CostTable:
        assert self.costs is not None
        return self.costs

    @property
    def _most_comparison_s(self) -> float:
        """Seconds of a full pass over as many rows as a comparison may have: none takes more."""
        return self._costs.verify(self.settings.trial_rows)

    def seconds(self, skip_set: SkipSet) -> float:
        """Modelled seconds of a cycle that drafts with a set, of the mean depth and size of late."""
        verify = self._costs.verify(1 + round(self._nodes / self._weight))
        return self.draft_seconds(skip_set, self.depth) + verify

    def draft_seconds(self, skip_set: SkipSet, depth: float) -> float:
        """Modelled seconds of drafting so many levels with a set."""
        costs = self._costs
        passes = costs.draft(1, skip_set) + (depth - 1) * costs.draft(self.level_rows, skip_set)
        return passes + depth * costs.overhead

    def speed(self, difference: float, seconds: float) -> float:
        """Modelled tokens per second of a set that drafts better by `difference` nats a token."""
        accepted = self.acceptance + difference * self._slope / self._slope_weight
        return chain_tokens(min(max(accepted, 0.0), 0.999), self.depth) / seconds

    # -- candidates --------------------------------------------------------------------------------------------------

    def candidate(self) -> SkipSet | None:
        """What to try next; None if a draw from what is known says that nothing near is faster."""
        change = self._best_change(self.effects.draw(self._random))
        return self._changed(change) if any(change) else None

    def _best_change(self, effects: Sequence[float]) -> list[int]:
        """The best few changes of the set in use if `effects` were true, one after the other.

        At most one sub-layer that was never tried is among them, so that a bad surprise can be laid at its door.
        """
        step = [1 if skipped else -1 for skipped in _skipped(self.current)]
        costs = self._sublayer_seconds()
        change, gain, seconds = [0] * len(step), 0.0, self.seconds(self.current)
        best = self.speed(0.0, seconds)
        for _ in range(_FLIPS):
            surprise = any(changed and not tried for changed, tried in zip(change, self.effects.tried, strict=True))
            free = [j for j in range(len(step)) if not change[j] and (self.effects.tried[j] or not surprise)]
            speeds = {j: self.speed(gain + step[j] * effects[j], seconds + step[j] * costs[j]) for j in free}
            j = max(speeds, key=speeds.__getitem__, default=-1)
            if j < 0 or speeds[j] <= best:
                break
            change[j], best = step[j], speeds[j]
            gain, seconds = gain + step[j] * effects[j], seconds + step[j] * costs[j]
        return change

    def _sublayer_seconds(self) -> list[float]:
        """What each sub-layer costs in a cycle's drafting, if it is kept, norms and additions aside."""
        passes = {cost.rows: (*cost.attention, *cost.mlp) for cost in self._costs.passes}
        further = self.depth - 1
        return [one + further * level for one, level in zip(passes[1], passes[self.level_rows], strict=True)]

    def _changed(self, change: Sequence[int]) -> SkipSet:
        n = self.current.num_layers
        skipped = [j for j, was in enumerate(_skipped(self.current)) if was != (change[j] != 0)]
        attention, mlp = (tuple(j for j in skipped if j < n), tuple(j - n for j in skipped if j >= n))
        return SkipSet(num_layers=n, attention=attention, mlp=mlp, target=self.start.target)

    # -- what comparisons tell ---------------------------------------------------------------------------------------

    def learn(self, candidate: SkipSet, base: SkipSet, result: ComparisonResult) -> None:
        """Take in a comparison of `candidate` against `base`, and use the candidate if it is faster."""
        change = [int(was) - int(now) for was, now in zip(_skipped(base), _skipped(candidate), strict=True)]
        self.effects.learn(change, result.difference, result.variance)
        self._slope = _KEEP_SLOPE * self._slope + result.hits * result.difference
        self._slope_weight = _KEEP_SLOPE * self._slope_weight + result.difference**2
        if base is not self.current:
            return  # another generation has changed the set meanwhile
        mean, sd = self.effects.predict(change)
        seconds = self.seconds(candidate)
        if self.speed(mean - sd, seconds) > self.speed(0.0, self.seconds(self.current)):
            self._accepted = self._weight * (self.speed(mean, seconds) * seconds - 1.0)  # until cycles tell
            self.current = candidate
            self.num_changes += 1

    def export(self, target: str | None = None) -> SkipSet:
        """The set in use, to be saved. target: hash of the target that it was found for."""
        figures = {"cycles": self.num_cycles, "trial_passes": self.num_passes, "changes": self.num_changes}
        provenance = {"method": ADAPTIVE, "overhead": self.settings.overhead, **figures}
        now = self.current
        return SkipSet(
            num_layers=now.num_layers, attention=now.attention, mlp=now.mlp, target=target, provenance=provenance
        )


def _skipped(skip_set: SkipSet) -> list[bool]:
    """Of every sub-layer, attention first, whether a set leaves it out."""
    layers = range(skip_set.num_layers)
    return [i in skip_set.attention for i in layers] + [i in skip_set.mlp for i in layers]
