"""How sure a drafter may be of its own order of tokens when the target samples under noise that both know.

With Gumbel coupling the target takes the largest log p + g. A drafter that knows g and has q for p puts softmax of
(log q + g) / s in its place: s = 0 would be right if q were p; the further log q lies from log p, the larger s must be.
That distance grows with 1 / temperature, as the logits do, so s is modelled as hypot(floor, slope / temperature).
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
    """The scale s of a drafter as a function of temperature. `fit` finds it; it is stored with the draft artefact.

    The default serves drafters that were not calibrated. It lies between two fits of layer-skip drafts of the demo
    target, whose best token was right in 76-84 % (s = .4 at temperature 1) and in 47-63 % of cases (s = .75).
    """

    floor: float = 0.2
    """s at high temperatures."""
    slope: float = 0.5
    """s times temperature at low ones."""

    def __post_init__(self) -> None:
        for name in ("floor", "slope"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InputError(f"confidence scale {name} is {value!r}; it must be a number of at least 0")
        if self.floor == 0 and self.slope == 0:
            raise InputError("confidence scale floor and slope are both 0; one must be above 0")

    def at(self, temperature: float) -> float:
        """The scale at a temperature above 0."""
        return math.hypot(self.floor, self.slope / temperature)

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> ConfidenceScale:
        """From the JSON of an artefact; the default where it holds none. Raises InputError for anything else."""
        if record is None:
            return cls()
        if not isinstance(record, Mapping) or set(record) != {"floor", "slope"}:
            raise InputError(f"confidence_scale is {record!r}; it must hold the numbers floor and slope")
        return cls(**record)

    @classmethod
    def fit(cls, best: Mapping[float, float]) -> ConfidenceScale:
        """The curve through the best scales by temperature: least squares in the relative error of s.

        Raises InputError unless there are two temperatures or more.
        """
        if len(best) < 2:
            raise InputError("a confidence scale is fitted to the best scales of at least two temperatures")
        s2 = torch.tensor([s * s for s in best.values()], dtype=torch.float64)  # s^2 = floor^2 + slope^2 / T^2
        design = torch.tensor([[1.0, 1.0 / t**2] for t in best], dtype=torch.float64) / s2[:, None]
        both = torch.linalg.lstsq(design, torch.ones(len(best), 1, dtype=torch.float64)).solution[:, 0]
        if (both >= 0).all():
            squares = both.tolist()
        else:  # one of the terms is 0 at the optimum: the other alone, whichever fits better
            alone = [float(column.sum() / (column * column).sum()) for column in design.T]
            errors = [float(((design[:, i] * alone[i] - 1) ** 2).sum()) for i in range(2)]
            squares = [alone[0], 0.0] if errors[0] <= errors[1] else [0.0, alone[1]]
        return cls(floor=math.sqrt(squares[0]), slope=math.sqrt(squares[1]))


def log_confidence(perturbed: Tensor, scale: float) -> Tensor:
    """Log of softmax((log q + g) / s) over the last dimension. perturbed: log q + g."""
    return (perturbed / scale).log_softmax(dim=-1)


def negative_log_likelihood(perturbed: Tensor, choice: Tensor, scales: Tensor) -> Tensor:
    """[rows, len(scales)]: surprise, in nats, at the target's choices under each scale.

    perturbed: [rows, vocab] log q + g of the draft; choice: [rows] int64 what the target took.
    """
    taken = perturbed.gather(1, choice[:, None])  # [rows, 1]
    rows = [(perturbed / s).logsumexp(dim=-1, keepdim=True) - taken / s for s in scales.tolist()]
    return torch.cat(rows, dim=1)
