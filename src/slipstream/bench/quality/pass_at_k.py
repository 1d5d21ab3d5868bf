"""pass@k: the chance that at least one of k answers passes its tests, estimated from n of them."""

from __future__ import annotations

from math import comb

from slipstream.errors import InputError


def pass_at_k(num_answers: int, num_passed: int, k: int) -> float:
    """The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374), section 2.1: 1 - C(n - c, k) / C(n, k).

    It is the share of the k-element subsets of the n answers that hold one of the c that passed. Whole numbers keep it
    exact. Raises InputError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= num_passed <= num_answers:
        raise InputError(f"{num_passed} of {num_answers} answers passed; that is no count")
    if not 1 <= k <= num_answers:
        raise InputError(f"pass@{k} needs at least {max(k, 1)} answers an item; there are {num_answers}")
    every = comb(num_answers, k)
    return (every - comb(num_answers - num_passed, k)) / every
