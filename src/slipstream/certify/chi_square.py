"""The chi-square test of counts against a law, and what it can find. No dependencies: torch has the gamma functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

LEAST_EXPECTED = 5.0
"""Counts below this in a cell make the chi-square distribution a poor approximation; cells are pooled to reach it."""


def p_value(observed: Sequence[int], expected: Sequence[float]) -> float:
    """Pearson's test: the probability of counts at least as far from `expected` if they follow it.

    Both sum to the number of samples. One cell alone says nothing: 1. A count where none is expected: 0.
    """
    if any(count and not mean for count, mean in zip(observed, expected, strict=True)):
        return 0.0
    pairs = [(count, mean) for count, mean in zip(observed, expected, strict=True) if mean]
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    return survival(statistic, len(pairs) - 1)


def survival(statistic: float, freedom: int) -> float:
    """P(X > statistic) for chi-square X with that many degrees of freedom; 1 for none."""
    if freedom < 1:
        return 1.0
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the adjusted p-values, in the given order.

    The probability that any test of a true hypothesis falls below alpha is at most alpha.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def smallest_bias(num_samples: int, num_cells: int, alpha: float, power: float = 0.9) -> float:
    """The smallest total variation distance from the law that the test finds with probability `power`.

    That is the bias hardest to find at its distance: the same share of every cell's probability moves. Any other that
    moves as much between cells is found more surely. 1 where there is one cell or too few samples.
    """
    if num_cells < 2:
        return 1.0
    freedom = num_cells - 1
    critical = _solve(lambda x: alpha - survival(x, freedom))
    shift = _solve(lambda x: _shifted_survival(critical, freedom, x) - power)
    return min(1.0, math.sqrt(shift / num_samples) / 2)


def _shifted_survival(statistic: float, freedom: int, shift: float) -> float:
    """P(X > statistic) for the noncentral chi-square X: a Poisson mixture of central ones. shift: above 0."""
    spread = 10 * math.sqrt(shift / 2) + 20
    first, last = max(0, int(shift / 2 - spread)), int(shift / 2 + spread)
    terms = torch.arange(first, last + 1, dtype=torch.float64)
    log_weights = terms * math.log(shift / 2) - shift / 2 - torch.lgamma(terms + 1)
    tails = torch.special.gammaincc(freedom / 2 + terms, torch.full_like(terms, statistic / 2))
    return float((log_weights.exp() * tails).sum())


def _solve(rising: Callable[[float], float]) -> float:
    """Where a rising function of a number above 0 is 0."""
    low, high = 0.0, 1.0
    while rising(high) < 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high
