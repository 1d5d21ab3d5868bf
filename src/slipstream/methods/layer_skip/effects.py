"""What keeping each sub-layer is worth, learnt from comparisons of whole skip sets by Bayesian linear regression.

A comparison says how much better or worse a candidate set drafts than the set in use. The difference is taken as the
sum of the effects of the sub-layers in which the two differ, so one comparison teaches about all of them; the posterior
says how sure that is, and a draw from it (Thompson sampling) proposes what is good or little known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Effects:
    """Normal beliefs about the effect of each of `size` sub-layers; old comparisons fade, since the text changes."""

    def __init__(self, size: int, mean: float, sd: float) -> None:
        """mean, sd: of the prior, the same for every sub-layer."""
        self._prior = torch.eye(size, dtype=torch.float64) / sd**2
        self._prior_weighted = torch.full((size,), mean / sd**2, dtype=torch.float64)
        self._precision = self._prior.clone()  # [size, size]
        self._weighted = self._prior_weighted.clone()  # [size] precision @ mean
        self._fade = 1.0 - 1.0 / (8 * size)  # a comparison counts for about eight rounds of all sub-layers
        self.tried = [False] * size
        """Whether each sub-layer has been changed in a comparison."""

    def learn(self, change: Sequence[int], difference: float, variance: float) -> None:
        """Take in a comparison. change: +1 for a sub-layer that only the candidate keeps, -1 for one only it skips."""
        x = torch.tensor(change, dtype=torch.float64)
        self._precision = self._prior + self._fade * (self._precision - self._prior) + torch.outer(x, x) / variance
        self._weighted = self._prior_weighted + self._fade * (self._weighted - self._prior_weighted)
        self._weighted += x * difference / variance
        self.tried = [tried or step != 0 for tried, step in zip(self.tried, change, strict=True)]

    def predict(self, change: Sequence[int]) -> tuple[float, float]:
        """Mean and standard deviation of what a change brings."""
        x = torch.tensor(change, dtype=torch.float64)[:, None]
        solved = torch.cholesky_solve(torch.stack((self._weighted, x[:, 0]), dim=1), self._factor())  # [size, 2]
        mean, variance = (x.T @ solved)[0].tolist()
        return mean, variance**0.5

    def draw(self, random: torch.Generator) -> list[float]:
        """Effects drawn from the posterior."""
        factor = self._factor()
        mean = torch.cholesky_solve(self._weighted[:, None], factor)
        noise = torch.randn(mean.shape, generator=random, dtype=torch.float64)
        drawn: list[float] = (mean + torch.linalg.solve_triangular(factor.T, noise, upper=True))[:, 0].tolist()
        return drawn

    def _factor(self) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(self._precision)
        return factor
