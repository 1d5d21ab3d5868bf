"""Modelled speed: trees as they are really grown, cycles by hand, seconds by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slipstream.core.rules import Candidates
from slipstream.drafting.growth import Frontier, grow
from slipstream.drafting.shape import Chain, Dynamic
from slipstream.engine.sequence import Step
from slipstream.output import Output, Stats
from slipstream.runtime.sublayer_costs import CostTable, PassCost
from slipstream.search.agreement import Agreement
from slipstream.search.modelled import accepted_of_chain, accepted_of_tree, modelled_speed, visited
from slipstream.search.objectives import Generated, PlainComparison, with_overheads
from slipstream.skipping.skip_set import SkipSet


def agreement(rank: list[list[int]], confidence: torch.Tensor, room: list[int] | None = None) -> Agreement:
    return Agreement(
        torch.tensor(rank), confidence.float().log(), torch.tensor([99] * len(rank) if room is None else room)
    )


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 30), st.integers(0, 10**6), st.data())
def test_a_tree_is_the_one_that_growth_grows(
    width: int, depth: int, total: int, seed: int, data: st.DataObject
) -> None:
    rng = torch.Generator().manual_seed(seed)
    log_confidence = torch.randn(depth, 6, generator=rng).mul(2).log_softmax(dim=-1).sort(descending=True).values
    log_confidence = log_confidence[:, :width].round(
        decimals=data.draw(st.sampled_from([1, 6]))
    )  # with and without ties
    shape = Dynamic(width=width, depth=depth, total=total)
    path = data.draw(st.lists(st.integers(0, width), min_size=depth, max_size=depth))

    def expand(frontier: Frontier, k: int) -> Candidates:
        rows = frontier.tokens.shape[0]
        return Candidates(torch.arange(k).expand(rows, k), log_confidence[frontier.depth, :k].expand(rows, k))

    tree, expected, parent = grow(expand, torch.zeros(1, dtype=torch.int64), shape), 0, -1
    for rank in path:
        same = (tree.parents == parent) & (tree.tokens == rank)
        if not same.any():
            break
        parent = int(same.nonzero()[0])
        expected += 1
    found, _ = accepted_of_tree(Agreement(torch.tensor([path]), log_confidence[None], torch.tensor([99])), shape)
    assert found.tolist() == [expected]


def test_a_chain_ends_after_its_first_unsure_token_and_at_the_end_of_the_answer() -> None:
    sure = torch.tensor([[0.9, 0.9, 0.9], [0.9, 0.2, 0.9], [0.2, 0.9, 0.9], [0.9, 0.9, 0.9]])[..., None]
    found = agreement([[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]], sure, room=[9, 9, 9, 2])
    accepted, drafted = accepted_of_chain(found, Chain(length=3, threshold=0.5))
    assert drafted.tolist() == [3, 2, 1, 1]
    assert accepted.tolist() == [2, 2, 0, 1]


def test_cycles_follow_what_was_accepted_and_stay_in_their_answer() -> None:
    accepted = torch.tensor([1, 9, 0, 2, 0, 0, 0])
    assert visited(accepted, [3, 4]) == [0, 2, 3, 6]


def costs() -> CostTable:
    one = PassCost(rows=1, outside=1.0, attention=(1.0, 1.0), mlp=(2.0, 2.0), rest=(0.5, 0.5))
    five = PassCost(rows=5, outside=3.0, attention=(2.0, 2.0), mlp=(3.0, 3.0), rest=(1.0, 1.0))
    return CostTable(passes=(one, five), prefix=4, overhead=0.25, cycle=0.5)


def test_costs_add_up_and_lie_on_the_line_between_widths() -> None:
    half = SkipSet(num_layers=2, attention=(0,), mlp=(1,))
    whole = SkipSet(num_layers=2, attention=(0,), mlp=(0,))
    assert costs().verify(1) == 8.0
    assert costs().verify(3) == pytest.approx((8.0 + 15.0) / 2)
    assert costs().draft(1, half) == pytest.approx(8.0 - 1.0 - 2.0)
    assert costs().draft(1, whole) == pytest.approx(8.0 - 1.0 - 2.0 - 0.5)
    assert CostTable.from_json(costs().to_json()) == costs()


def test_speed_is_tokens_over_seconds_of_the_cycles() -> None:
    skip_set = SkipSet(num_layers=2, attention=(0,), mlp=(1,))
    found = agreement([[0, 1], [1, 1], [0, 0], [0, 0]], torch.full((4, 2, 1), 0.9), room=[4, 3, 2, 1])
    figures = modelled_speed(found, [4], Chain(length=2, threshold=0.5), costs(), skip_set)
    # Root 0 drafts two and keeps one, root 2 drafts one (the answer ends) and keeps it: two cycles, four tokens.
    first = 2 * (5.0 + 0.25) + costs().verify(3) + 0.5
    second = 1 * (5.0 + 0.25) + costs().verify(2) + 0.5
    assert figures.tau == 2.0
    assert figures.num_drafted == 1.5
    assert figures.tokens_per_second == pytest.approx(4 / (first + second))
    assert figures.speedup == pytest.approx((8.0 + 0.5) * 4 / (first + second))
    assert figures.bound == pytest.approx((8.0 + 0.5) * 4 / (first + second - 3 * 0.25))
    assert figures.first_agreement == 0.75


# -- plain decoding by the same clock ---------------------------------------------------------------------------------

HALF = SkipSet(num_layers=2, attention=(0,), mlp=(1,))
SHAPE = Chain(length=2, threshold=0.5)


def step(tokens: int, drafted: int, moment: float = 1.0, **beside: float) -> Step:
    """A cycle whose pass takes what the table says, at a moment when the machine is so many times as slow."""
    seconds = {"verify_s": costs().verify(1 + drafted), **beside}
    slow = {name: moment * one for name, one in seconds.items()}
    return Step(token_ids=(7,) * tokens, num_drafted=drafted, num_accepted=tokens - 1, **slow)


def test_overheads_are_of_the_tables_clock_however_slow_the_machine_was_meanwhile() -> None:
    """Two levels are drafted in two passes of 5 seconds and 1 second more."""
    plain = [step(1, 0, moment, sample_s=0.3, host_s=0.1) for moment in (1.0, 3.0, 9.0)]
    drafting = [step(2, 2, moment, draft_s=11.0, sample_s=0.3, host_s=0.1) for moment in (0.5, 7.0)]
    found = with_overheads(replace(costs(), overhead=0.0, cycle=0.0), plain, drafting, HALF, SHAPE)
    assert found.cycle == pytest.approx(0.4)
    assert found.overhead == pytest.approx(0.5)
    assert found.plain == pytest.approx(8.4)


def generated(*steps: Step) -> Generated:
    tokens = [token for one in steps for token in one.token_ids]
    stats = Stats.of(steps, 1.0)
    output = Output(text="", token_ids=tokens, prompt_ids=[1], finish_reason="length", seed=None, stats=stats)
    return Generated(output, list(steps))


def test_a_set_is_compared_with_plain_decoding_prompt_by_prompt() -> None:
    pairs = [
        (generated(*[step(1, 0, moment, host_s=0.5)] * 6), generated(*[step(2, 2, moment, draft_s=12.0)] * 3))
        for moment in (1.0, 5.0)
    ]
    found = PlainComparison.of(pairs, SHAPE, costs(), HALF)
    expected = 6 * 8.5 / (3 * (12.0 + costs().verify(3)))
    assert found.speedup == pytest.approx(expected)
    assert (found.low, found.high) == pytest.approx((expected, expected))
    assert (found.tau, found.num_drafted, found.answers) == (2.0, 2.0, 2)
    assert found.speedup < found.bound == pytest.approx(2 * 8.5 / (10.0 + costs().verify(3) + 0.5))


def test_nothing_above_what_the_costs_allow_is_reported() -> None:
    """Plain decoding met a slow moment, the set did not."""
    pairs = [(generated(*[step(1, 0, 9.0)] * 4), generated(*[step(2, 2, 1.0, draft_s=10.0)] * 2))] * 2
    found = PlainComparison.of(pairs, SHAPE, costs(), HALF)
    assert found.bound < 1
    assert found.low == found.speedup == found.high == found.bound
