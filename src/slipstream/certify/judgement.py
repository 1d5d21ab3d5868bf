"""The decision rule: whether a difference from plain decoding is rounding or a fault.

Against the same shape, everything is the same arithmetic, so nothing may differ:

1. Where the measured floor is zero, a differing token *or one differing bit of a hidden state* is a fault, however
   small the margin.
2. Where it is not (some experts, some kernels), a differing token is put to the float64 run: every reference identical
   there means rounding, anything else a fault. Without a float64 run it is rounding if our token falls short of the
   reference's by at most twice the floor (the two scores may each have moved by it), and a fault if by more.

Row by row and transformers run other shapes, so tokens may differ by rounding; how much rounding there is, is measured
on transformers alone (the yardstick):

3. A reference whose logits stay within `TOLERANCE` yardsticks of the same-shape reference's, the place of the first
   difference included, differs by rounding if it differs at all.
4. Else the float64 run decides; without one the answer is undecided.

A small margin alone excuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from slipstream.certify.identity import Against, Comparison

Ruling = Literal["identical", "rounding", "fault", "undecided"]
"""Of one answer against one reference."""

RULINGS: tuple[Ruling, ...] = ("identical", "rounding", "undecided", "fault")
"""From best to worst."""

TOLERANCE = 4.0
"""Yardsticks: both are largest values over many logits of like passes, so they agree within a small factor; what a
wrong mask, position or cache row does to a logit is many times larger."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A ruling, and why."""

    ruling: Ruling
    reason: str


def worst(rulings: list[Ruling]) -> Ruling:
    """The worst of rulings; `identical` if there is none."""
    return max(rulings, key=RULINGS.index, default="identical")


def judge(found: Comparison, yardstick: float, in_float64: Callable[[], Comparison | None]) -> dict[str, Judged]:
    """Rule on an answer against each of its references, by name.

    yardstick: the largest of the run. in_float64: the same request and method compared in float64, asked for only where
    the rule needs it; None where there is no such run.
    """
    judged = {"same shape": _judge_same_shape(found, in_float64)}
    for name, against in found.references.items():
        if name != "same shape":
            judged[name] = _judge_other_shape(against, found, yardstick, in_float64)
    return judged


def _judge_same_shape(found: Comparison, in_float64: Callable[[], Comparison | None]) -> Judged:
    divergence = found.same_shape.divergence
    if found.floor.is_zero:
        if divergence is not None:
            return Judged("fault", "another token in the same shape, where nothing rounds differently")
        if found.num_states_differing:
            return Judged("fault", "other hidden states in the same shape, where nothing rounds differently")
        return Judged("identical", "every hidden state is the same, bit for bit")
    if divergence is None:
        return Judged("identical", "the same tokens; states differ by what other rows of a pass hold")
    exact = in_float64()
    if exact is not None:
        return _by_float64(found.same_shape, exact)
    if divergence.shortfall <= 2 * found.floor.logits:
        return Judged("rounding", "within twice the floor; there was no float64 run")
    return Judged(
        "fault", f"the token falls short by {divergence.shortfall:.3g}, the floor is {found.floor.logits:.3g}"
    )


def _judge_other_shape(
    against: Against, found: Comparison, yardstick: float, in_float64: Callable[[], Comparison | None]
) -> Judged:
    # Once the answer has left the same-shape reference there is nothing to measure this one's logits by.
    measured = found.same_shape.divergence is None
    if measured and against.logit_distance <= TOLERANCE * yardstick:
        if against.divergence is None:
            return Judged("identical", "the same tokens")
        return Judged("rounding", f"logits differ by at most {against.logit_distance:.3g}, yardstick {yardstick:.3g}")
    if not measured and against.divergence is None:
        return Judged("identical", "the same tokens")
    exact = in_float64()
    if exact is not None:
        return _by_float64(against, exact)
    return Judged(
        "undecided", f"logits differ by {against.logit_distance:.3g}, yardstick {yardstick:.3g}; float64 would decide"
    )


def _by_float64(against: Against, exact: Comparison) -> Judged:
    if not exact.has_same_tokens:
        return Judged("fault", "differs in float64 too")
    ruling: Ruling = "identical" if against.divergence is None else "rounding"
    return Judged(ruling, "every reference is identical in float64")
