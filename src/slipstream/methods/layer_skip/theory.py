"""What speculation should bring: expected tokens per cycle, and speed from measured costs of passes.

Symbols, here and in docs/theory.md: a is the probability that the target takes a drafted token, given that it took
those before it; K the length of a chain; all costs are in units of one plain decoding pass, c that of one draft pass,
v(n) that of verifying n rows, the root among them. Leviathan et al. 2023 (arXiv 2211.17192), section 3, is the case
v(n) = 1 and equal a at every place.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence

VerifyCost = Callable[[int], float]
"""Cost of a target pass over so many rows, in units of a pass over one."""

LONGEST = 64
"""Chains longer than this are not considered."""


def free_rows(rows: int) -> float:
    """The cost of verification where rows cost nothing: a device bound by reading weights."""
    return 1.0


def chain_tokens(acceptance: float, length: float) -> float:
    """Expected tokens of a cycle: 1 + a + ... + a^K = (1 - a^(K+1)) / (1 - a). `length` may be an average."""
    if acceptance >= 1.0:
        return length + 1.0
    return (1.0 - math.pow(acceptance, length + 1.0)) / (1.0 - acceptance)


def acceptance_of(tokens: float, length: float) -> float:
    """The a at which chains of `length` bring `tokens` a cycle: the inverse of `chain_tokens`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if chain_tokens(middle, length) < tokens else (low, middle)
    return high


def chain_speedup(acceptance: float, draft: float, length: int, verify: VerifyCost = free_rows) -> float:
    """Speed relative to plain decoding: tokens of a cycle over K c + v(K + 1)."""
    return chain_tokens(acceptance, length) / (length * draft + verify(length + 1))


def best_chain_length(
    acceptance: float, draft: float, verify: VerifyCost = free_rows, longest: int = LONGEST
) -> tuple[int, float]:
    """(K, speed-up) of the fastest chain up to `longest`; (0, 1.0) where no chain beats plain decoding."""
    lengths = range(1, longest + 1)
    best = max(lengths, key=lambda length: chain_speedup(acceptance, draft, length, verify))
    speedup = chain_speedup(acceptance, draft, best, verify)
    return (best, speedup) if speedup > 1.0 else (0, 1.0)


def tree_tokens(values: Iterable[float]) -> float:
    """Expected tokens of a cycle: the next token, and every node with the probability that it is accepted."""
    return 1.0 + sum(values)


def best_values(ranks: Sequence[float], total: int, depth: int) -> list[float]:
    """Values of the best `total` nodes down to `depth` levels, highest first.

    ranks: probability that the target takes the best, second best, ... child of a node, the same at every node; a
    node's value is the product along its path. No other tree of as many nodes brings more tokens.
    """
    heap = [(-rank, 1) for rank in ranks]
    heapq.heapify(heap)
    values: list[float] = []
    while heap and len(values) < total:
        negative, level = heapq.heappop(heap)
        values.append(-negative)
        if level < depth:
            for rank in ranks:
                heapq.heappush(heap, (negative * rank, level + 1))
    return values


def best_tree_size(
    ranks: Sequence[float], draft: float, depth: int, verify: VerifyCost = free_rows, largest: int = 256
) -> tuple[int, float]:
    """(nodes, speed-up) of the fastest tree of `depth` levels, one draft pass each; (0, 1.0) where none pays."""
    best, best_speedup, tokens = 0, 1.0, 1.0
    for size, value in enumerate(best_values(ranks, largest, depth), start=1):
        tokens += value
        speedup = tokens / (depth * draft + verify(1 + size))
        if speedup > best_speedup:
            best, best_speedup = size, speedup
    return best, best_speedup


def bound_of_skipping(kept: float, length: float, matchness: float) -> float:
    """Speed-up of a chain that drafts with `kept` of the weights and has `matchness` of its tokens accepted.

    (matchness K + 1) / (K kept + 1): what a device bound by reading weights can give, draft length held at K.
    """
    return (matchness * length + 1.0) / (length * kept + 1.0)
