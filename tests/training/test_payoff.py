"""Whether a head in training would pay, from what is known of its drafts and of the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slipstream.drafting.recipe import Paths, Report
from slipstream.runtime.costs import Costs
from slipstream.training.payoff import best, right_paths

COSTS = Costs(verify_s=((1, 1.0), (2, 1.1), (4, 1.3), (64, 7.3)), draft_s=(0.0, 0.1, 0.2, 0.3))
REPORT = Report(
    step=1, num_steps=2, elapsed_s=1.0, learning_rate=1e-3, loss=1.0, parts={}, accuracy=(0.5,), held_out=(0.5, 0.2)
)


def test_the_best_of_chains_and_small_trees_is_told():
    found = best({1: (0.5, 0.4, 0.01)}, COSTS)
    assert (found.draft, found.tau) == ("chain of 2", pytest.approx(1.9))
    assert found.gain == pytest.approx(1.9 / (0.2 + 1.2))
    assert str(found) == "it would pay here: about 1.36 times plain's speed with a chain of 2, tau 1.90"
    wide = best({1: (0.1,), 4: (0.9, 0.5, 0.4)}, COSTS)  # 4, 20 and 84 nodes: the last is too large
    assert (wide.draft, wide.tau) == ("tree of 4 tokens", pytest.approx(1.9))
    assert wide.gain == pytest.approx(1.9 / (0.1 + 1.4))


def test_a_head_that_is_not_worth_its_cost_is_told_not_to_pay():
    found = best({1: (0.1, 0.01)}, COSTS)
    assert found.gain == pytest.approx(1.1 / 1.2)
    assert str(found).startswith("it would not pay here yet: about 0.92 times plain's speed with a chain of 1")


def test_paths_are_taken_as_counted_and_else_from_the_accuracy_by_depth():
    paths = Paths((1, 4), torch.tensor([4, 4]), torch.tensor([[2, 1], [4, 2]]))
    assert paths.shares() == {1: (0.5, 0.25), 4: (1.0, 0.5)}
    assert right_paths(replace(REPORT, right=paths.shares()), 5) == paths.shares()
    assert right_paths(REPORT, 2) == {1: (0.5, pytest.approx(0.1))}
    assert right_paths(replace(REPORT, held_out=(0.5,)), 3) == {1: (0.5, 0.25, 0.125)}  # a draft model
