"""What plain decoding would have taken for an answer, estimated from the answer's own cycles.

A cycle with a draft is more than a plain cycle by its draft and by the further rows of its pass. What those rows cost
is known where the target's passes were measured on this machine, which sizes by cost ask for anyway. Only the ratio of
two passes is read off these costs, so that it does not matter how busy the machine is. Nothing is measured for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slipstream.engine.sequence import Step
from slipstream.runtime.costs import PassCosts
from slipstream.runtime.kept_costs import KeptCosts
from slipstream.target.target import Target

_FEWEST = 3
"""Plain cycles of an answer that say what one takes, where no costs are known."""


class PlainSpeed:
    """Plain decoding's time for answers of one target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._passes: PassCosts | None = None

    def seconds(self, steps: Sequence[Step], prompt_length: int) -> float | None:
        """For the tokens of an answer, the prompt left out; None where too little is known."""
        if self._passes is None and any(step.num_drafted or step.num_scouts for step in steps):
            self._passes = KeptCosts(self._target).known_passes()
        return plain_seconds(steps, prompt_length, self._passes)


def plain_seconds(steps: Sequence[Step], prompt_length: int, passes: PassCosts | None) -> float | None:
    """Of the tokens of an answer. passes: what passes cost; without, an answer's own plain cycles have to do."""
    cycles = list(_plain_cycles(steps) if passes is None else _as_plain(steps, prompt_length, passes))
    if not cycles or (passes is None and len(cycles) < min(_FEWEST, len(steps))):
        return None
    return sum(len(step.token_ids) for step in steps) * sum(cycles) / len(cycles)


def _plain_cycles(steps: Sequence[Step]) -> Iterator[float]:
    """Seconds of the cycles without a draft."""
    for step in steps:
        if not step.num_drafted and not step.num_scouts:
            yield step.verify_s + _beside(step)


def _as_plain(steps: Sequence[Step], prompt_length: int, passes: PassCosts) -> Iterator[float]:
    """Seconds of every cycle, had its pass been over one row."""
    context = prompt_length
    for step in steps:
        rows = 1 + step.num_drafted + step.num_scouts
        share = 1.0 if rows == 1 else passes.seconds(1, context) / passes.seconds(rows, context)
        yield step.verify_s * share + _beside(step)
        context += len(step.token_ids)


def _beside(step: Step) -> float:
    """Seconds of a cycle outside the draft and the pass."""
    return step.build_s + step.sample_s + step.host_s
