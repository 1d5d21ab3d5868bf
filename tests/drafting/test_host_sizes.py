"""Sizes of looked-up drafts: values, learning for nothing, and a world of known costs where the best size is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from random_trees import token_paths
from slipstream.core.rules import GreedyRule
from slipstream.drafting.base import Generation, Observed
from slipstream.drafting.host_sizes import (
    ROWS,
    Guesses,
    Habits,
    HostSizes,
    Kind,
    Odds,
    RowPrices,
    Scouting,
    Sizing,
    prior,
)
from slipstream.errors import InputError
from slipstream.methods.lookahead import LookaheadDrafter
from slipstream.methods.prompt_lookup import PromptLookupDrafter, PromptLookupSettings
from slipstream.runtime.costs import PassCosts
from slipstream.runtime.kept_costs import KeptCosts
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

CPU = torch.device("cpu")
chains = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6)


def half(kind: Kind) -> float:
    """Every guess is right every other time, siblings less often."""
    return 0.5 / (1 + kind.sibling)


def guesses_of(some: Sequence[Sequence[int]], odds: Callable[[Kind], float] = half, **rest: Any) -> Guesses:
    guesses = Guesses(odds, **rest)
    for chain in some:
        guesses.add(chain, match=1)
    return guesses


def every_node(guesses: Guesses) -> list[int]:
    return list(range(len(guesses.tokens)))


# -- guesses -------------------------------------------------------------------------------------------------------


def test_chains_merge_where_they_agree() -> None:
    guesses = guesses_of([[1, 2, 3], [1, 2, 4], [5], [1, 2, 3]])
    tree = guesses.tree(every_node(guesses), CPU)
    assert token_paths(tree) == [(1,), (1, 2), (1, 2, 3), (1, 2, 4), (5,)]
    assert tree.parents.tolist() == [-1, 0, 1, 1, -1]
    assert tree.depth.tolist() == [1, 2, 3, 3, 1]
    assert tree.log_value.exp().tolist() == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.25])
    assert tree.max_depth == 3


def test_no_guesses_are_a_tree_without_nodes() -> None:
    tree = Guesses(half).tree([], CPU)
    assert (tree.num_nodes, tree.max_depth) == (0, 0)


def test_a_match_grows_with_the_draft_and_kinds_are_few() -> None:
    asked: list[Kind] = []
    guesses = Guesses(lambda kind: asked.append(kind) or 0.9)
    guesses.add([1] * 14, match=2)
    guesses.add([2], match=1, source=1)
    assert asked[:10] == [Kind(match, 0) for match in range(2, 12)]
    assert set(asked[10:14]) == {Kind(12, 0)}
    assert asked[14] == Kind(1, 1, source=1)


def test_guesses_of_little_worth_are_left_out_but_for_those_that_teach() -> None:
    guesses = guesses_of([[1, 2, 3, 4], [7, 8]], least_value=0.2)
    assert token_paths(guesses.tree(every_node(guesses), CPU)) == [(1,), (1, 2), (7,)]
    rare = guesses_of([[1, 2]], odds=lambda kind: 1e-9, least_value=0.2)
    assert len(rare.tokens) == 1


@given(chains, st.lists(st.integers(0, 2), max_size=6))
@settings(deadline=None)
def test_guesses_follow_the_text(some: list[list[int]], text: list[int]) -> None:
    guesses = guesses_of(some)
    paths = token_paths(guesses.tree(every_node(guesses), CPU))
    along = [path for path in paths if list(path[:-1]) == text[: len(path) - 1] and len(path) <= len(text)]
    right = [path for path in along if list(path) == text[: len(path)]]
    found = list(guesses.follow(text))
    assert len(found) == len(along)
    assert sum(hit for _, hit in found) == len(right) == guesses.num_right(text, every_node(guesses))


@given(chains, st.lists(st.floats(0.05, 0.95), min_size=9, max_size=9), st.integers(1, 9))
@settings(deadline=None)
def test_the_nodes_of_highest_value_hold_each_others_parents(some: Any, odds: list[float], total: int) -> None:
    guesses = guesses_of(some, odds=lambda kind: odds[(kind.match * 3 + kind.sibling) % 9])
    kept = Sizing(Habits(), None, total).choose(guesses)
    assert len(kept) == min(total, len(guesses.tokens))
    assert kept == sorted(kept)
    assert {guesses.parents[node] for node in kept} <= {-1, *kept}
    assert min(guesses.values[node] for node in kept) >= max(
        (guesses.values[node] for node in every_node(guesses) if node not in kept), default=0
    )


# -- odds ----------------------------------------------------------------------------------------------------------


def test_odds_begin_with_what_is_known_and_end_with_what_was_seen() -> None:
    odds = Odds(lambda kind: 0.3, memory=256)
    kind = Kind(2, 0)
    assert odds.of(kind) == pytest.approx(0.3)
    rng = random.Random(0)
    for _ in range(500):
        odds.note(kind, rng.random() < 0.8)
    assert odds.of(kind) == pytest.approx(0.8, abs=0.1)
    assert odds.of(Kind(3, 0)) == pytest.approx(0.3)
    for _ in range(1000):
        odds.note(kind, right=False)
    assert odds.of(kind) < 0.05, "what was long ago is forgotten"


def test_longer_matches_are_expected_to_be_right_more_often() -> None:
    longer = [prior(Kind(match, 0)) for match in range(1, 13)]
    assert longer == sorted(longer)
    assert all(prior(Kind(match, 1)) < prior(Kind(match, 0)) for match in range(1, 13))


def test_what_would_have_been_drafted_teaches_without_being_verified() -> None:
    sizes = HostSizes(4, 4)
    sizing = sizes.start(cast(Target, None), GreedyRule(), 3)
    text = [1, 2, 3]
    for _ in range(30):
        sizing.catch_up(text)
        guesses = sizing.guesses()
        guesses.add([5, 6], match=1)
        sizing.run(guesses, text, rows=1)
        text += [5]  # a plain cycle: the second guess stays open
    assert sizing.guesses().values == []
    learnt = sizes.start(cast(Target, None), GreedyRule(), 3).guesses()
    learnt.add([5, 6], match=1)
    assert learnt.values[0] > 0.6
    assert learnt.values[1] / learnt.values[0] == pytest.approx(prior(Kind(2, 0)))


def test_habits_are_those_of_a_rule_and_a_temperature() -> None:
    sizes = HostSizes(4, 4)
    warm, hot = GreedyRule(), GreedyRule()
    warm.temperature, hot.temperature = 0.68, 1.0
    habits = [sizes.start(cast(Target, None), rule, 3).habits for rule in (GreedyRule(), warm, hot, GreedyRule())]
    assert habits[0] is habits[3]
    assert len({id(one) for one in habits}) == 3
    warm.temperature = 0.71
    assert sizes.start(cast(Target, None), warm, 3).habits is habits[1]


# -- how many ------------------------------------------------------------------------------------------------------


@given(
    chains,
    st.lists(st.floats(0, 0.4), min_size=len(ROWS) - 1, max_size=len(ROWS) - 1),
    st.floats(1, 3),
    st.integers(0, 9),
)
@settings(deadline=None)
def test_the_draft_is_worth_most_of_all_that_could_be_chosen(
    some: list[list[int]], steps: list[float], pace: float, beside: int
) -> None:
    prices = RowPrices(tuple((rows, 1 + sum(steps[:place])) for place, rows in enumerate(ROWS)))
    sizing = Sizing(Habits(tokens=pace * 10, price=10.0), prices, 63)
    guesses = guesses_of(some)

    def worth(size: int) -> float:
        best = sorted(guesses.values, reverse=True)[:size]
        return sum(best) - 1.5 * pace * (prices.of(1 + beside + size) - prices.of(1 + beside))

    sizes = {0, len(guesses.tokens), *(rows - 1 - beside for rows in ROWS)}
    possible = [size for size in sizes if 0 <= size <= len(guesses.tokens)]
    assert worth(len(sizing.choose(guesses, beside))) == pytest.approx(max(map(worth, possible)))


def test_prices_are_in_plain_passes_and_lie_on_the_line_between_sizes() -> None:
    prices = RowPrices(((1, 2.0), (5, 4.0), (9, 12.0)))
    assert [prices.of(rows) for rows in (1, 3, 5, 7, 11)] == pytest.approx([1.0, 1.5, 2.0, 4.0, 8.0])


def test_costs_are_asked_for_once_and_a_text_goes_by_those_after_its_prompt(monkeypatch) -> None:
    asked: list[Target] = []
    costs = PassCosts(((64, ((1, 1.0), (16, 2.0))), (1024, ((1, 2.0), (16, 8.0)))))

    def passes(kept: Any) -> PassCosts:
        asked.append(kept.target)
        return costs

    monkeypatch.setattr(KeptCosts, "__init__", lambda kept, target: setattr(kept, "target", target))
    monkeypatch.setattr(KeptCosts, "passes", passes)
    one, other = (cast(Target, Place()) for _ in range(2))
    sizes = HostSizes("auto", 20)

    def price(target: Target, length: int) -> float:
        found = sizes.start(target, GreedyRule(), length).prices
        assert found is not None
        return found.of(16)

    assert price(one, 1024) == pytest.approx(4.0)
    assert price(one, 3) == price(one, 64) == pytest.approx(2.0)
    assert price(other, 544) == pytest.approx((2.0 + 8.0) / (1.0 + 2.0))
    assert asked == [one, other]
    HostSizes(7, 20).start(one, GreedyRule(), 3)
    assert asked == [one, other], "a fixed size needs no costs"


class Place:
    """A target that can be told from another."""

    device = CPU


@pytest.mark.parametrize("total", [0, -1, 1.5, False, "all"])
def test_a_total_of_another_kind_is_refused(total: Any) -> None:
    with pytest.raises(InputError, match="it must be at least 1, a whole number, or 'auto'"):
        HostSizes(total, 5)


# -- rows beside the draft -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("brings", "pays"), [(0.1, False), (0.6, True)])
def test_trials_take_a_share_of_the_time_at_most(brings: float, pays: bool) -> None:
    """Rows that make every cycle take 0.4 plain cycles more."""
    scouting, rng = Scouting(), random.Random(1)
    running, extra, idle = False, 0.0, 0.0
    for _ in range(6000):
        if running:
            extra += 0.4
            bare = 1 + (rng.random() < 0.2)
            running = scouting.note(3, bare + (rng.random() < brings), 1.45, bare, 1.05)
        else:
            idle += 1.05
            scouting.save(1.05)
        running = running or scouting.begins(0.4, 3, room=50)
        assert pays or extra <= 0.05 * idle + 0.4
    assert scouting.pays == pays
    assert running or not pays
    if not pays:
        assert 2 * 19 * 0.4 < extra < 0.02 * idle, "a few trials, ever rarer"


def test_no_trial_begins_where_it_would_be_cut_short() -> None:
    scouting = Scouting()
    assert not scouting.begins(0.0, 3, room=18)
    assert scouting.begins(0.0, 3, room=19)


# -- a world of known costs ----------------------------------------------------------------------------------------


def copying(seed: int, length: int, starts: float, goes_on: float) -> list[int]:
    """Text that now and then copies from further up, for a geometric number of tokens."""
    rng = random.Random(seed)
    text = [rng.randrange(400) for _ in range(60)]
    source = None
    while len(text) < length:
        if source is None and rng.random() < starts:
            source = rng.randrange(len(text) - 1)
        elif source is not None and rng.random() > goes_on:
            source = None
        text.append(rng.randrange(400) if source is None else text[source])
        source = None if source is None else source + 1
    return text


def always_wrong(length: int) -> list[int]:
    """What followed a token before never follows it again."""
    text, after = [0], [0] * 50
    while len(text) < length:
        last = text[-1]
        after[last] += 1
        text.append((last * 7 + after[last]) % 50)
    return text


SLOPES = {"flat": 0.002, "bfloat16": 0.02, "float32": 0.045, "steep": 0.4}


def seconds_of(
    drafter: PromptLookupDrafter | LookaheadDrafter, text: list[int], prompt: int, slope: float
) -> tuple[float, list[int]]:
    """Plain cycles that a text takes where every row but the first costs `slope`; the rows of its cycles."""
    run = Generation(cast(Target, Place()), KVCache(0, CPU), GreedyRule(), text[:prompt], prompt)
    noise = random.Random(0)
    drafting = drafter.start(run)
    sizes: list[int] = []
    while len(run.tokens) < len(text):
        run.max_depth = len(text) - len(run.tokens) - 1
        tree = drafting.propose()
        ahead = text[len(run.tokens) :]
        paths = set(token_paths(tree))
        kept = next(n for n in range(len(ahead) + 1) if tuple(ahead[: n + 1]) not in paths)
        run.tokens += ahead[: kept + 1]
        rows = 1 + tree.num_nodes
        if (scouts := drafting.scouts()) is not None:
            rows += scouts.tokens.shape[0]
            said = [noise.randrange(400) for _ in range(drafting._window.frontier[0])]
            drafting.observe(Observed(tokens=[], features=None, scouted=said))
        sizes.append(rows)
    return sum(1 + slope * (rows - 1) for rows in sizes), sizes


@pytest.fixture(autouse=True)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test has a slope, costs are measured as they are there."""
    if "slope" in request.fixturenames:
        slope = SLOPES[request.getfixturevalue("slope")]
        prices = tuple((rows, 1 + slope * (rows - 1)) for rows in (1, 64))
        monkeypatch.setattr(KeptCosts, "__init__", lambda kept, target: None)
        monkeypatch.setattr(KeptCosts, "passes", lambda kept: PassCosts(((64, prices),)))


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize(("starts", "goes_on"), [(0.15, 0.95), (0.1, 0.75), (0.03, 0.6)])
def test_sizes_by_cost_come_near_the_best_fixed_size(starts: float, goes_on: float, slope: str) -> None:
    text = copying(1, 900, starts, goes_on)
    shapes = [(length, branches) for length in (1, 2, 4, 8, 20) for branches in (1, 3)]
    fixed = [PromptLookupDrafter(PromptLookupSettings(length=long, branches=wide)) for long, wide in shapes]
    best = min([len(text) - 60.0, *(seconds_of(one, text, 60, SLOPES[slope])[0] for one in fixed)])
    found, _ = seconds_of(PromptLookupDrafter(), text, 60, SLOPES[slope])
    assert found <= 1.02 * best


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize(("method", "most"), [(PromptLookupDrafter, 1.02), (LookaheadDrafter, 1.07)])
def test_decoding_is_plain_within_a_few_cycles_where_nothing_pays(method: Any, most: float, slope: str) -> None:
    """But for trials of lookahead's window."""
    text = always_wrong(400)
    seconds, sizes = seconds_of(method(), text, 100, SLOPES[slope])
    assert seconds <= most * len(sizes)
    if slope == "steep":
        assert sizes == [1] * 300
    elif slope != "flat" and method is PromptLookupDrafter:
        assert sum(rows > 1 for rows in sizes[100:]) < 20


def test_values_deep_in_a_draft_stay_finite() -> None:
    guesses = guesses_of([[1] * 900], odds=lambda kind: 0.1)
    assert math.isfinite(guesses.tree(every_node(guesses), CPU).log_value.sum().item())
