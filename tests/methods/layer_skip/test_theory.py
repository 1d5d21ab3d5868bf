"""The formulas of docs/theory.md against simulation and against every alternative."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.methods.layer_skip.theory import (
    acceptance_of,
    best_chain_length,
    best_tree_size,
    best_values,
    bound_of_skipping,
    chain_speedup,
    chain_tokens,
    free_rows,
    tree_tokens,
)

probabilities = st.floats(0.0, 1.0)
ranks = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4).map(
    lambda weights: sorted((weight / (sum(weights) + 0.1) for weight in weights), reverse=True)
)
"""Probabilities of the best, second best, ... child; their sum is below 1."""


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.95), st.integers(1, 8), st.integers(0, 2**32))
def test_chain_tokens_are_those_of_simulated_cycles(acceptance: float, length: int, seed: int) -> None:
    rng, cycles, tokens = random.Random(seed), 4000, 0
    for _ in range(cycles):
        tokens += 1
        for _ in range(length):
            if rng.random() >= acceptance:
                break
            tokens += 1
    assert tokens / cycles == pytest.approx(chain_tokens(acceptance, length), abs=5 * length / cycles**0.5 / 2)


@given(probabilities, st.integers(1, 20))
def test_chain_tokens_are_the_sum_of_the_path_probabilities(acceptance: float, length: int) -> None:
    path = [acceptance**depth for depth in range(1, length + 1)]
    assert chain_tokens(acceptance, length) == pytest.approx(tree_tokens(path))


@given(st.floats(0.0, 0.999), st.floats(0.5, 12))
def test_acceptance_is_found_again_from_the_tokens(acceptance: float, length: float) -> None:
    assert acceptance_of(chain_tokens(acceptance, length), length) == pytest.approx(acceptance, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(ranks, st.integers(1, 3), st.integers(0, 2**32))
def test_tree_tokens_are_those_of_simulated_cycles(ranks: list[float], depth: int, seed: int) -> None:
    paths = [path for level in range(1, depth + 1) for path in itertools.product(range(len(ranks)), repeat=level)]
    values = [product(ranks, path) for path in paths]
    rng, cycles, tokens = random.Random(seed), 3000, 0
    for _ in range(cycles):
        drawn = tuple(rng.choices([*range(len(ranks)), -1], [*ranks, 1 - sum(ranks)])[0] for _ in range(depth))
        tokens += 1 + next((level for level, rank in enumerate(drawn) if rank < 0), depth)
    assert tokens / cycles == pytest.approx(tree_tokens(values), abs=5 * depth / cycles**0.5)


def product(ranks: list[float], path: tuple[int, ...]) -> float:
    value = 1.0
    for rank in path:
        value *= ranks[rank]
    return value


@given(ranks, st.integers(1, 3), st.integers(1, 12))
def test_no_other_tree_of_as_many_nodes_brings_more(ranks: list[float], depth: int, total: int) -> None:
    paths = [path for level in range(1, depth + 1) for path in itertools.product(range(len(ranks)), repeat=level)]
    everything = sorted((product(ranks, path) for path in paths), reverse=True)
    assert best_values(ranks, total, depth) == pytest.approx(everything[:total])  # a bound that a tree attains


def test_one_rank_makes_a_tree_a_chain() -> None:
    assert tree_tokens(best_values([0.7], 9, depth=4)) == pytest.approx(chain_tokens(0.7, 4))


@given(st.floats(0.1, 0.98), st.floats(0.01, 0.9), st.floats(0.0, 0.2))
def test_no_other_length_of_chain_is_faster(acceptance: float, draft: float, row: float) -> None:
    def verify(rows: int) -> float:
        return 1.0 + row * (rows - 1)

    length, speedup = best_chain_length(acceptance, draft, verify, longest=20)
    every = [chain_speedup(acceptance, draft, other, verify) for other in range(1, 21)]
    assert speedup == pytest.approx(max([1.0, *every]))
    assert length == 0 or speedup == every[length - 1]


def test_a_draft_as_dear_as_the_target_cannot_pay() -> None:
    assert best_chain_length(0.9, draft=1.0) == (0, 1.0)
    assert best_tree_size([0.9, 0.05], draft=1.0, depth=3) == (0, 1.0)


@given(ranks, st.floats(0.01, 0.3), st.floats(0.0, 0.2), st.integers(1, 3))
def test_no_other_size_of_tree_is_faster(ranks: list[float], draft: float, row: float, depth: int) -> None:
    def verify(rows: int) -> float:
        return 1.0 + row * (rows - 1)

    sizes = range(1, 1 + len(best_values(ranks, 40, depth)))
    every = [tree_tokens(best_values(ranks, n, depth)) / (depth * draft + verify(1 + n)) for n in sizes]
    size, speedup = best_tree_size(ranks, draft, depth, verify, largest=40)
    assert speedup == pytest.approx(max([1.0, *every]))
    assert size == 0 or every[size - 1] == pytest.approx(speedup)


@pytest.mark.parametrize(("kept", "matchness", "bound"), [(0.634, 0.919, 1.40), (0.516, 0.928, 1.69)])
def test_the_bounds_of_the_published_sets_follow(kept: float, matchness: float, bound: float) -> None:
    assert bound_of_skipping(kept, length=12, matchness=matchness) == pytest.approx(bound, abs=0.005)
    assert free_rows(61) == 1.0


@given(st.floats(0.0, 0.99), st.floats(0.01, 0.99))
def test_where_rows_are_free_drafting_pays_if_acceptance_exceeds_its_cost(acceptance: float, draft: float) -> None:
    if abs(acceptance - draft) > 1e-6:
        assert (best_chain_length(acceptance, draft)[0] > 0) is (acceptance > draft)
