"""Whether a head in training would pay on this machine: what its drafts bring, over what they cost here.

What they bring is read off the measurement on held-out dialogues: how often drafts are right down to each depth. What
they cost is timed once, on the head as it was saved first, and kept like all costs (`runtime/costs.py`). Chains are
tried, and the few full trees that are small enough. Trees that a head sizes by its confidence do better, so this is
rather too low.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path

from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.recipe import Report
from slipstream.drafting.shape import Dynamic
from slipstream.methods.registry import build_drafter
from slipstream.runtime.costs import Costs
from slipstream.target.target import Target

_WIDTH = 4  # rows of the levels that are timed
_MOST_NODES = 63


@dataclass(frozen=True, slots=True)
class Payoff:
    """A draft, and what is expected of it."""

    draft: str
    """Such as "chain of 3"."""
    tau: float
    gain: float
    """Tokens per second over plain decoding's."""

    def __str__(self) -> str:
        verdict = "it would pay here" if self.gain > 1 else "it would not pay here yet"
        return f"{verdict}: about {self.gain:.2f} times plain's speed with a {self.draft}, tau {self.tau:.2f}"


class PayoffEstimate:
    """Estimates for one run, measurement by measurement."""

    def __init__(self, method: str, target: Target, out: Path, depth: int) -> None:
        """out: where the run saves its artefact. depth: levels that drafts have at most."""
        self._method, self._target, self._out, self._depth = method, target, out, depth
        self._costs: Costs | None = None

    def of(self, report: Report) -> Payoff:
        """What is expected at a measurement, whose artefact has been saved."""
        if self._costs is None:
            self._costs = self._measure()
        return best(right_paths(report, self._depth), self._costs)

    def _measure(self) -> Costs:
        drafter = build_drafter(self._method, self._target, {"draft": self._out})
        assert isinstance(drafter, ModelDrafter), "what is trained drafts with a model"
        return drafter.measure(Dynamic(width=_WIDTH, depth=self._depth, total=_WIDTH * self._depth))


def right_paths(report: Report, depth: int) -> Mapping[int, Sequence[float]]:
    """By children a node has: the share of drafts that are right down to each depth.

    Where paths were not counted, positions are taken as independent, and deeper ones to be as good as the last.
    """
    if report.right:
        return report.right
    accuracy = [*report.held_out, *(report.held_out[-1:] * depth)][:depth]
    return {1: tuple(accumulate(accuracy, mul))}


def best(right: Mapping[int, Sequence[float]], costs: Costs) -> Payoff:
    """The draft that is expected to decode fastest."""
    return max(_payoffs(right, costs), key=lambda one: one.gain)


def _payoffs(right: Mapping[int, Sequence[float]], costs: Costs) -> Iterator[Payoff]:
    plain_s = costs.verify(1)
    for top, shares in right.items():
        tau, nodes = 1.0, 0
        for depth, share in enumerate(shares[: len(costs.draft_s) - 1], start=1):
            tau, nodes = tau + share, nodes + top**depth
            if nodes > _MOST_NODES:
                break
            name = f"chain of {depth}" if top == 1 else f"tree of {nodes} tokens"
            yield Payoff(name, tau, tau * plain_s / (costs.draft_s[depth] + costs.verify(1 + nodes)))
