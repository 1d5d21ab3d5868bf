"""When a chain ends: the adaptive threshold as published, the heuristic length as in transformers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.drafting.exit_rule import ChainLength, ExitRule
from slipstream.drafting.shape import Chain


def published_updates(history: list[tuple[int, int]], length: int, gamma: float, alpha: float) -> list[float]:
    """gamma after every verification, as the released code computes it (auto_parameters = [1, .5, alpha, .01, .9])."""
    acceptance, gammas = 0.0, []
    for num_accepted, num_drafted in history:
        acceptance = 0.5 * acceptance + 0.5 * num_accepted / num_drafted
        if acceptance < alpha:
            new = gamma + 0.01
        elif num_drafted == length:
            new = gamma
        else:
            new = gamma - 0.01
        gamma = 0.9 * gamma + 0.1 * new
        gammas.append(gamma)
    return gammas


def test_the_defaults_are_those_of_the_published_runs() -> None:
    settings = Chain()
    assert (settings.length, settings.threshold, settings.target_acceptance, settings.adaptive) == (12, 0.6, 0.9, True)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)).map(lambda pair: (min(pair), pair[1])), max_size=40))
def test_the_threshold_follows_the_published_rule(history: list[tuple[int, int]]) -> None:
    threshold, gammas = ExitRule(12, 0.6, 0.9), []
    for num_accepted, num_drafted in history:
        threshold.learn(num_accepted, num_drafted)
        gammas.append(threshold.gamma)
    assert gammas == pytest.approx(published_updates(history, length=12, gamma=0.6, alpha=0.9))


@pytest.mark.parametrize(
    ("num_accepted", "num_drafted", "moved"), [(0, 12, 0.001), (0, 5, 0.001), (5, 5, -0.001), (12, 12, 0.0)]
)
def test_the_threshold_rises_when_too_little_is_accepted_and_falls_unless_the_draft_was_full(
    num_accepted: int, num_drafted: int, moved: float
) -> None:
    threshold = ExitRule(12, 0.6, 0.9)
    threshold.acceptance = 1.0 if num_accepted else 0.0
    threshold.learn(num_accepted, num_drafted)
    assert threshold.gamma == pytest.approx(0.6 + moved)


@pytest.mark.parametrize(("threshold", "accepted"), [(0.0, True), (1.0, False)])
def test_the_threshold_stays_a_probability(threshold: float, accepted: bool) -> None:
    adaptive = ExitRule(12, threshold, 0.9)
    for _ in range(2000):
        adaptive.learn(3 * accepted, 3)
    assert 0.0 <= adaptive.gamma <= 1.0


def test_a_fixed_threshold_and_an_empty_draft_change_nothing() -> None:
    fixed, idle = Chain(adaptive=False).exit_rule, Chain().exit_rule
    fixed.learn(0, 5)
    idle.learn(0, 0)
    assert (fixed.gamma, idle.gamma, idle.acceptance) == (0.6, 0.6, 0.0)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)).map(lambda pair: (min(pair), pair[1])), max_size=20))
def test_generations_pass_on_what_they_learn_but_not_their_average(history: list[tuple[int, int]]) -> None:
    alone, carried = ExitRule(8, 0.5, 0.9), ExitRule(8, 0.5, 0.9)
    one = carried.for_generation()
    for counts in history:
        alone.learn(*counts)
        one.learn(*counts)
    assert (one.gamma, one.acceptance) == (alone.gamma, alone.acceptance)
    next_one = carried.for_generation()
    assert (next_one.gamma, next_one.acceptance) == (alone.gamma, 0.0)


def test_a_drafter_has_an_exit_rule_of_its_own() -> None:
    shape = Chain()
    one, other = shape.for_drafter(), shape.for_drafter()
    one.exit_rule.learn(0, 12)
    assert one.exit_rule.gamma > other.exit_rule.gamma == 0.6
    assert one == other == shape


def test_the_heuristic_length_is_transformers() -> None:
    length = ChainLength(8, heuristic=True)
    seen = [length.current]
    for accepted, drafted in ((5, 5), (7, 7), (3, 8), (2, 2), (0, 1), *[(0, 1)] * 9):
        length.learn(accepted, drafted)
        seen.append(length.current)
    assert seen[:6] == [5, 7, 8, 7, 7, 6]  # 9 is beyond the limit; a chain that was unsure and right changes nothing
    assert seen[-1] == 1
    constant = ChainLength(8, heuristic=False)
    constant.learn(0, 8)
    assert constant.current == 8
