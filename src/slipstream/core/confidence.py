"""How sure a drafter may be of its own order of tokens.

EAGLE-2 takes a draft's probability for the probability that the token is accepted. That needs calibration: with greedy
decoding the draft's logits are divided by a scale that makes its softmax fit the target's choices. When the target
samples, the noise is known to both sides: with Gumbel coupling the target takes the largest log p + g. A drafter that
knows g and has q for p puts softmax of (log q + g) / s in its place: s = 0 would be right if q were p; the further log
q lies from log p, the larger s must be. That distance grows with 1 / temperature, as the logits do, so s is modelled
as hypot(floor, slope / temperature).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from slipstream.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceScale:
    """The scales of a drafter. `calibration.py` finds them; they are stored with the draft artefact.

    The default takes a draft's probabilities as they are for greedy decoding, as published. For sampling it serves
    drafters that were not calibrated. It lies between two fits of layer-skip drafts of the demo target, whose best
    token was right in 76-84 % (s = .4 at temperature 1) and in 47-63 % of cases (s = .75).
    """

    floor: float = 0.2
    """s at high temperatures."""
    slope: float = 0.5
    """s times temperature at low ones."""
    greedy: float = 1.0
    """What the draft's logits are divided by where the target decodes greedily."""

    def __post_init__(self) -> None:
        for name in ("floor", "slope", "greedy"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InputError(f"confidence scale {name} is {value!r}; it must be a number of at least 0")
        if self.floor == 0 and self.slope == 0:
            raise InputError("confidence scale floor and slope are both 0; one must be above 0")
        if self.greedy == 0:
            raise InputError("confidence scale greedy is 0; it must be above 0")

    def at(self, temperature: float) -> float:
        """The scale at a temperature; 0 is greedy decoding."""
        if temperature == 0:
            return self.greedy
        return math.hypot(self.floor, self.slope / temperature)

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> ConfidenceScale:
        """From the JSON of an artefact; the default where it holds none. Raises InputError for anything else."""
        if record is None:
            return cls()
        if not isinstance(record, Mapping) or set(record) != {"floor", "slope", "greedy"}:
            raise InputError(f"confidence_scale is {record!r}; it must hold the numbers floor, slope and greedy")
        return cls(**record)


def log_confidence(scores: Tensor, scale: float, best: Tensor) -> Tensor:
    """Log of softmax(scores / scale) over the last dimension, of the scores `best` among them.

    scores: [rows, columns]. best: [rows, k], the largest first: all are counted from it, so that near certainty is told
    from certainty.
    """
    first = best[:, :1]
    below = (scores - first).div_(scale)  # at most 0
    return (best - first) / scale - below.logsumexp(dim=-1, keepdim=True)


def negative_log_likelihood(scores: Tensor, choice: Tensor, scales: Tensor) -> Tensor:
    """[rows, len(scales)]: surprise, in nats, at the target's choices under each scale.

    scores: [rows, vocab] by which the drafter orders tokens: its logits, or log q + g
    (either but for a constant of each row); choice: [rows] int64 what the
    target took.
    """
    taken = scores.gather(1, choice[:, None])  # [rows, 1]
    rows = [(scores / s).logsumexp(dim=-1, keepdim=True) - taken / s for s in scales.tolist()]
    return torch.cat(rows, dim=1)
