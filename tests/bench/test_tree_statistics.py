"""Watching a drafter changes no token, and the statistics say what became of the trees that were watched."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doubles import configured, decode, request
from families import prompt_ids
from random_trees import make_tree, path_to, trees
from slipstream.bench.tree_statistics import (
    NUM_BINS,
    NUM_OCTAVES,
    POSITIONS,
    CalibrationCurve,
    Fates,
    Position,
    PositionTable,
    fates,
    rank_paths,
)
from slipstream.bench.watching import Cycle, WatchedDrafter
from slipstream.core.rules import Candidates
from slipstream.core.sampling import SamplingSettings
from slipstream.core.verify import walk
from slipstream.drafting.growth import grow
from slipstream.drafting.published_trees import EAGLE_1
from slipstream.drafting.shape import Static
from slipstream.engine.engine import Engine
from slipstream.target.target import Target

PROMPT = prompt_ids(7, seed=4) * 3


def cycle_of(tree, choice) -> Cycle:
    kept = walk(tree, choice)
    return Cycle(0, tree, choice, tuple(kept.order[: int(kept.num_accepted)].tolist()))


# -- watching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verification", ["coupled", "rejection"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("configuration", ["layer-skip-dynamic", "layer-skip-chain", "lookahead"])
def test_a_watched_drafter_gives_the_same_steps(configuration, temperature, verification, family_model):
    target = Target(family_model("llama"))
    asked = replace(
        request(PROMPT, max_new_tokens=20, temperature=temperature),
        sampling=SamplingSettings(seed=3, verification=verification),
    )

    def steps(drafter):
        found = Engine(target, drafter).generate(asked)
        return [(step.token_ids, step.num_drafted, step.num_accepted) for step in found]

    alone = steps(configured(configuration, target))
    assert steps(WatchedDrafter(configured(configuration, target))) == alone


def test_every_cycle_is_kept_once(family_model):
    target = Target(family_model("llama"))
    watched = WatchedDrafter(configured("layer-skip-dynamic", target))
    result = decode(Engine(target, watched), PROMPT, max_new_tokens=20, temperature=0.0)
    cycles = watched.take()
    assert [cycle.tree.num_nodes for cycle in cycles] == [step.num_drafted for step in result.steps]
    assert [len(cycle.path) for cycle in cycles[:-1]] == [step.num_accepted for step in result.steps[:-1]]
    assert [cycle.root for cycle in cycles] == [PROMPT[-1], *(step.token_ids[-1] for step in result.steps[:-1])]
    assert watched.take() == []


# -- fates ---------------------------------------------------------------------------------------------------------


@given(trees(), st.data())
@settings(deadline=None)
def test_fates_are_those_of_a_walk_node_by_node(tree, data):
    n = tree.num_nodes
    choice = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n + 1, max_size=n + 1)))
    found = fates(cycle_of(tree, choice))
    parents = tree.parents.tolist()
    accepted = {
        node
        for node in range(n)
        if all(int(tree.tokens[i]) == int(choice[parents[i] + 1]) for i in path_to(parents, node))
    }
    assert found.accepted.tolist() == [node in accepted for node in range(n)]
    assert found.reached.tolist() == [parents[node] < 0 or parents[node] in accepted for node in range(n)]


def test_confidence_is_a_node_s_own_and_value_that_of_its_path():
    tree = make_tree([-1, 0, 0], [5, 6, 7], [math.log(x) for x in (0.5, 0.1, 0.25)])
    found = fates(cycle_of(tree, torch.tensor([5, 7, 0, 0])))
    assert found.confidence.tolist() == pytest.approx([0.5, 0.2, 0.5])
    assert found.value.tolist() == pytest.approx([0.5, 0.1, 0.25])
    assert found.accepted.tolist() == [True, False, True]


def test_a_cycle_without_a_draft_counts_nothing():
    cycle = cycle_of(make_tree([], []), torch.tensor([1]))
    assert fates(cycle).confidence.shape == (0,)
    assert rank_paths(cycle) == []


def test_rank_paths_of_a_static_tree_are_its_table():
    shape = Static(EAGLE_1)

    def expand(frontier, k):
        rows = frontier.tokens.shape[0]
        order = torch.arange(k).expand(rows, k)
        return Candidates(order.clone(), -0.1 - order.float())

    tree = grow(expand, torch.tensor([0]), shape)
    assert rank_paths(cycle_of(tree, torch.zeros(26, dtype=torch.int64))) == list(shape.paths)
    assert set(POSITIONS.values()) <= set(shape.paths)


# -- calibration ---------------------------------------------------------------------------------------------------


def nodes(confidence, accepted, reached=None) -> Fates:
    given = torch.tensor(confidence, dtype=torch.float64)
    flags = torch.ones_like(given, dtype=torch.bool) if reached is None else torch.tensor(reached)
    return Fates(given, given, flags, torch.tensor(accepted))


def test_a_drafter_as_sure_as_it_is_right_has_no_calibration_error():
    curve = CalibrationCurve()
    curve.count(nodes([0.25] * 4 + [0.75] * 4, [True, False, False, False, True, True, True, False]))
    assert curve.expected_error == pytest.approx(0.0)


def test_the_error_is_the_mean_gap_over_nodes():
    curve = CalibrationCurve()
    curve.count(nodes([0.9, 0.9, 0.1, 0.1], [True, True, True, False]))
    assert curve.expected_error == pytest.approx((0.1 * 2 + 0.4 * 2) / 4)


def test_nodes_under_a_rejected_parent_do_not_count():
    curve = CalibrationCurve()
    curve.count(nodes([0.9, 0.9], [True, False], reached=[True, False]))
    assert sum(curve.to_dict()["num_nodes"]) == 1


def test_confidence_zero_and_one_have_their_bins():
    curve = CalibrationCurve()
    curve.count(nodes([0.0, 1.0, 1.0 + 1e-9], [False, True, True]))
    counts = curve.to_dict()["num_nodes"]
    assert (counts[0], counts[-1], sum(counts), len(counts)) == (1, 2, 3, NUM_BINS)


def test_counts_add_up_as_if_counted_together():
    first, second, both = CalibrationCurve(), CalibrationCurve(), CalibrationCurve()
    one, other = nodes([0.3, 0.8], [True, False]), nodes([0.31, 0.99], [False, True])
    first.count(one)
    second.count(other)
    both.count(one)
    both.count(other)
    first.merge(second.to_dict())
    assert first.to_dict() == both.to_dict()


# -- positions -----------------------------------------------------------------------------------------------------


def test_a_position_counts_where_the_tree_has_it():
    tree = make_tree([-1, -1, 0], [5, 6, 7], [math.log(x) for x in (0.6, 0.3, 0.4)])
    cycle = cycle_of(tree, torch.tensor([5, 0, 0, 0]))
    positions = PositionTable()
    positions.count(cycle, fates(cycle))
    found = positions.to_dict()
    assert [sum(found[name]["num_nodes"]) for name in POSITIONS] == [1, 1, 1, 0, 0, 0]
    assert [found[name]["acceptance"] for name in ("P1", "P2", "P3")] == [1.0, 0.0, 0.0]
    assert (found["P3"]["num_reached"], found["P4"]["num_reached"]) == (1, 0)


def test_thirds_are_of_cycles_by_confidence():
    position = Position([0] * NUM_OCTAVES, [0] * NUM_OCTAVES)
    for value, accepted in [(0.9, True)] * 3 + [(0.3, True), (0.3, False), (0.3, False)] + [(1e-9, False)] * 3:
        position.count(value, reached=True, accepted=accepted)
    assert position.third(high=True) == pytest.approx(1.0)
    assert position.third(high=False) == pytest.approx(0.0)
    assert position.to_dict()["acceptance"] == pytest.approx(4 / 9, abs=1e-4)


def test_a_bin_that_straddles_a_third_is_split():
    position = Position([0] * NUM_OCTAVES, [0] * NUM_OCTAVES)
    for accepted in [True] * 3 + [False] * 3:
        position.count(0.9, reached=True, accepted=accepted)
    assert position.third(high=True) == position.third(high=False) == pytest.approx(0.5)


def test_position_counts_add_up():
    cycle = cycle_of(make_tree([-1, -1], [5, 6], [-0.2, -3.0]), torch.tensor([5, 0, 0]))
    once, twice = PositionTable(), PositionTable()
    once.count(cycle, fates(cycle))
    twice.count(cycle, fates(cycle))
    twice.count(cycle, fates(cycle))
    once.merge(once.to_dict())
    assert once.to_dict() == twice.to_dict()
