from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from doubles import Decoded, decode, request
from families import CONTEXT, build, prompt_ids
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from random_trees import token_paths
from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafter, Drafting, Generation, Observed, Scouts
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.lookahead import PUBLISHED, LookaheadDrafter, LookaheadSettings, NgramPool, Window
from slipstream.methods.registry import build_drafter
from slipstream.runtime.costs import PassCosts
from slipstream.target.target import Target

PROMPT = prompt_ids(6, seed=1) * 3
SIZES = {"published": (7, 5, 7), "small": (3, 4, 2), "narrow": (1, 3, 1), "long": (2, 7, 3)}


# -- a slow twin of the published algorithm ------------------------------------------------------------------------


class Twin:
    """The released algorithm without mask, positions or cache: every row of the window is a text of its own."""

    def __init__(self, model: PreTrainedModel, settings: LookaheadSettings, first: list[int], **how: Any) -> None:
        """first: level 0 without the root, W + N - 3 tokens. how: the oracle's settings of sampling."""
        self.model, self.how = model, how
        self.level, self.width, self.guesses = settings.level, settings.window, settings.guesses
        self.levels = [first]
        self.pool: dict[int, list[tuple[int, ...]]] = {}

    def say(self, text: list[int]) -> int:
        return oracle_generate(self.model, text, max_new_tokens=1, **self.how)[0]

    def window(self) -> list[int]:
        return [token for level in self.levels for token in level]

    def step(self, text: list[int]) -> list[int]:
        """One pass over the window behind `text`. Returns what the target says after the last level."""
        trunk, branches = self.levels[0], self.levels[1:]
        if not branches:
            said = [self.say([*text, *trunk[: i + 1]]) for i in range(len(trunk))]
            self.levels = [trunk[1:], said]
            return said
        columns = [[level[i] for level in branches] for i in range(len(branches[0]))]
        said = [self.say([*text, *trunk[:i], *column]) for i, column in enumerate(columns)]
        if len(self.levels) < self.level - 1:
            self.levels = [*(level[1:] for level in self.levels), said[1:]]
            return said
        for first, column, last in zip([text[-1], *trunk], columns, said, strict=True):
            self.remember(first, (*column, last))
        assert [len(level) for level in self.levels] == [self.width - 1] + [self.width] * (self.level - 2)
        self.levels = [branches[0][1:], *branches[1:], said]
        return said

    def remember(self, first: int, rest: tuple[int, ...]) -> None:
        known = self.pool.setdefault(first, [])
        if rest in known:
            known.remove(rest)
        known.append(rest)
        del known[: -self.guesses]


@dataclass
class Cycle:
    """What a drafter put into one pass, and what came back."""

    text: list[int]
    tree: DraftTree
    window: list[int]
    said: list[int] = field(default_factory=list)


class Recorded(Drafter):
    """A lookahead drafter whose cycles are written down."""

    name = "recorded"

    def __init__(self, settings: LookaheadSettings) -> None:
        self.inner = LookaheadDrafter(settings)
        self.cycles: list[Cycle] = []

    def start(self, run: Generation) -> Drafting:
        return _Recorded(run, self.inner.start(run), self.cycles)


class _Recorded(Drafting):
    def __init__(self, run: Generation, inner: Drafting, cycles: list[Cycle]) -> None:
        self.run, self.inner, self.cycles = run, inner, cycles

    def propose(self) -> DraftTree:
        self.tree = self.inner.propose()
        return self.tree

    def scouts(self) -> Scouts | None:
        scouts = self.inner.scouts()
        assert scouts is not None
        self.cycles.append(Cycle(list(self.run.tokens), self.tree, scouts.tokens.tolist()))
        return scouts

    def observe(self, observed: Observed) -> None:
        if observed.scouted:
            self.cycles[-1].said = list(observed.scouted)
        self.inner.observe(observed)


def record(model: PreTrainedModel, settings: LookaheadSettings, num_cycles: int, **how: Any) -> list[Cycle]:
    """The first cycles of a generation far from its end."""
    drafter = Recorded(settings)
    steps = Engine(Target(model), drafter).generate(request(PROMPT, max_new_tokens=CONTEXT - len(PROMPT), **how))
    for _ in range(num_cycles):
        next(steps)
    steps.close()
    return drafter.cycles


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_k": 9, "seed": 2}])
@pytest.mark.parametrize(
    ("name", "sizes"), [*(("llama", sizes) for sizes in SIZES), ("gemma3", "published"), ("gpt2", "small")]
)
def test_window_and_pool_are_those_of_the_published_algorithm(name, sizes, how, family_model):
    """Every row of the window, what the target said after it, and every n-gram that was drafted.

    Of a sampled text the released code has no window: it takes the argmax. Here the twin says what would be sampled.
    """
    window, level, guesses = SIZES[sizes]
    settings = LookaheadSettings(window=window, level=level, guesses=guesses, pool_from_prompt=False)
    model = family_model(name)
    cycles = record(model, settings, 12, **how)
    twin = Twin(model, settings, cycles[0].window, **how)
    drafted = 0
    for cycle in cycles:
        assert cycle.window == twin.window()
        known = twin.pool.get(cycle.text[-1], [])
        prefixes = {rest[:depth] for rest in known for depth in range(1, level)}
        assert sorted(token_paths(cycle.tree)) == sorted(prefixes)
        assert cycle.said == twin.step(cycle.text)
        drafted += cycle.tree.num_nodes
    assert drafted > 0 or sizes == "narrow", "nothing was drafted, so the pool was not tested"


def test_a_new_window_holds_tokens_of_the_prompt(family_model):
    settings = LookaheadSettings(**PUBLISHED)
    first = record(family_model("llama"), settings, 1)[0].window
    assert len(first) == PUBLISHED["window"] + PUBLISHED["level"] - 3
    assert set(first) <= set(PROMPT)


# -- the window ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(3, 8), st.integers(0, 12))
def test_each_cell_sees_the_trunk_up_to_its_column_and_its_own_column(width: int, level: int, passes: int) -> None:
    window = Window(width, level, [0])
    for _ in range(passes):
        window.advance([0] * window.frontier[0])
    tokens, parents, depth = window.rows()
    levels = min(1 + passes, level - 1)
    columns = width + level - 1 - levels
    cells = [(row, column) for row in range(levels) for column in range(columns)][1:]
    assert len(tokens) == len(cells)
    for cell, (row, column) in enumerate(cells):
        seen, node = set(), cell
        while node >= 0:
            seen.add(cells[node])
            assert parents[node] < node
            node = parents[node]
        assert seen == {(0, c) for c in range(1, column + 1)} | {(r, column) for r in range(1, row + 1)}
        assert depth[cell] == row + column == len(seen)


def test_a_window_with_every_token_told_apart_moves_on_by_one_place() -> None:
    """W = 3, N = 4, tokens named by place: 10 x level of origin + place behind the first root."""
    window = Window(3, 4, [0])
    window._levels = [[0, 1, 2, 3, 4]]
    assert window.frontier == (4, 2)
    assert window.advance([12, 13, 14, 15]) == []
    window.set_root(91)
    assert window.rows()[0] == [2, 3, 4, 12, 13, 14, 15]
    assert window.frontier == (4, 2)
    assert window.advance([23, 24, 25, 26]) == []
    window.set_root(92)
    assert window.rows()[0] == [3, 4, 13, 14, 15, 24, 25, 26]
    assert window.frontier == (3, 3)
    assert window.advance([35, 36, 37]) == [(92, 13, 24, 35), (3, 14, 25, 36), (4, 15, 26, 37)]
    window.set_root(93)
    assert window.rows()[0] == [14, 15, 24, 25, 26, 35, 36, 37]


@pytest.mark.parametrize("sizes", SIZES)
def test_draft_slots_hold_every_pass(sizes, family_model):
    window, level, guesses = SIZES[sizes]
    settings = LookaheadSettings(window=window, level=level, guesses=guesses)
    cycles = record(family_model("llama"), settings, 12)
    widest = max(len(cycle.window) for cycle in cycles)
    assert LookaheadDrafter(settings).draft_slots == 1 + widest + guesses * (level - 1)


# -- the pool ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=30), st.integers(1, 4))
def test_the_pool_keeps_the_ngrams_used_last_under_their_first_token(ngrams: list[Any], capacity: int) -> None:
    pool = NgramPool(capacity)
    for ngram in ngrams:
        pool.add(ngram)
    for first in range(4):
        latest = list(dict.fromkeys(ngram[1:] for ngram in reversed(ngrams) if ngram[0] == first))
        assert [rest for rest, _ in pool.guesses(first)] == latest[:capacity]


def test_text_is_pooled_only_when_asked(family_model):
    """The prompt repeats itself, so its own n-grams are a draft from the first cycle on."""
    on, off = (
        record(family_model("llama"), LookaheadSettings(**PUBLISHED, pool_from_prompt=pooled), 1)[0]
        for pooled in (True, False)
    )
    assert tuple(PROMPT[:4]) in token_paths(on.tree)
    assert off.tree.num_nodes == 0


def test_the_answer_is_pooled_with_the_prompt(family_model):
    settings = LookaheadSettings(window=1, level=5, guesses=64)
    for cycle in record(family_model("llama"), settings, 20):
        text, level = cycle.text, settings.level
        ngrams = [text[i + 1 : i + level] for i in range(len(text) - level + 1) if text[i] == text[-1]]
        assert {tuple(ngram) for ngram in ngrams} <= set(token_paths(cycle.tree))


# -- what comes of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repetitive() -> PreTrainedModel:
    """A target whose greedy text soon repeats itself, in a period that its prompt does not show."""
    return build("llama", weight_std=0.35, seed=11)


def generate(model: PreTrainedModel, prompt: Sequence[int], how: dict[str, Any], **options: Any) -> Decoded:
    target = Target(model)
    engine = Engine(target, build_drafter("lookahead", target, {**PUBLISHED, **options}))
    return decode(engine, prompt, max_new_tokens=60, **how)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.6, "seed": 3}])
def test_the_window_alone_brings_accepted_tokens(how, repetitive):
    """Nothing of the text is pooled: every guess is a trajectory (the twin above compares them one by one)."""
    prompt = prompt_ids(12)
    result = generate(repetitive, prompt, how, pool_from_prompt=False)
    assert result.ids == oracle_generate(repetitive, prompt, max_new_tokens=60, **how)
    assert len(result.steps) < 50, "no better than plain decoding"


def test_a_sampled_window_meets_the_sampled_target_more_often_than_a_greedy_one(repetitive, monkeypatch):
    """The noise of the positions ahead is known, so trajectories are drawn as the text will be."""
    settings = {"temperature": 1.0}

    def num_accepted() -> int:
        prompts = [prompt_ids(12, seed=seed) for seed in range(6)]
        return sum(
            generate(repetitive, prompt, {**settings, "seed": seed}, pool_from_prompt=False).num_accepted
            for seed, prompt in enumerate(prompts)
        )

    sampled = num_accepted()
    monkeypatch.setattr("slipstream.core.rules.CoupledRule.guess", lambda rule, logits, depth: logits.argmax(dim=-1))
    assert sampled > 1.5 * num_accepted()


@pytest.mark.parametrize("sizes", SIZES)
@in_both_sizes("temperature", [0.0, 1.0])
def test_text_is_that_of_plain_decoding_at_any_size(temperature, sizes, repetitive):
    window, level, guesses = SIZES[sizes]
    how = {"temperature": temperature, "seed": 8}
    result = generate(repetitive, PROMPT, how, window=window, level=level, guesses=guesses)
    assert result.ids == oracle_generate(repetitive, PROMPT, max_new_tokens=60, **how)


@both_sizes
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3", "longrope", "dynamic-rope"])
def test_no_row_of_the_window_reaches_past_the_budget_the_context_or_a_rope_boundary(name, family_model, monkeypatch):
    target, prompt = Target(family_model(name)), prompt_ids(CONTEXT - 12)
    if target.family.rope_boundary is not None:
        prompt = prompt_ids(target.family.rope_boundary - 12)
    limit, right, highest = len(prompt) + 12, Target.forward, []

    def forward(self: Target, tokens: torch.Tensor, positions: torch.Tensor, *others: Any, **rest: Any) -> Any:
        highest.append(int(positions.max()))
        return right(self, tokens, positions, *others, **rest)

    monkeypatch.setattr(Target, "forward", forward)
    engine = Engine(target, LookaheadDrafter(LookaheadSettings(**PUBLISHED)))
    result = decode(engine, prompt, max_new_tokens=12)
    assert result.ids == oracle_generate(family_model(name), prompt, max_new_tokens=12)
    assert len(prompt) + 4 < max(highest) < limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "lookahead window is 0; it must be a whole number from 1 to 256"),
        ({"window": 257}, "lookahead window is 257; it must be a whole number from 1 to 256"),
        ({"level": 2}, "lookahead level is 2; it must be a whole number from 3 to 64"),
        ({"guesses": "many"}, "lookahead guesses is 'many'; it must be a whole number from 1 to 256"),
        ({"total": 0}, "total is 0; it must be at least 1, a whole number, or 'auto'"),
        ({"pool_from_prompt": 1}, "lookahead pool_from_prompt is 1; it must be true or false"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str, family_model) -> None:
    with pytest.raises(InputError, match=message):
        build_drafter("lookahead", Target(family_model("llama")), options)


# -- by cost -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "by_cost"),
    [
        ({}, True),
        ({"pool_from_prompt": False}, True),
        ({"window": 3, "total": "auto"}, True),
        ({"window": 3}, False),
        ({"level": 4}, False),
        ({"guesses": 2}, False),
        ({"total": 9}, False),
    ],
)
def test_explicit_sizes_stay_as_given(options: dict[str, Any], by_cost: bool) -> None:
    drafter = LookaheadDrafter(LookaheadSettings(**options))
    assert drafter.sizes.by_cost == by_cost
    sizes = {name: options.get(name, size) for name, size in PUBLISHED.items()}
    assert {name: getattr(drafter, name) for name in PUBLISHED} == sizes


def scouting_cycles(drafter: LookaheadDrafter, model: PreTrainedModel, prompts: Sequence[list[int]]) -> list[bool]:
    """Whether the window ran in each cycle of some generations."""
    ran: list[bool] = []

    class Watching(Recorded):
        def __init__(self) -> None:
            self.inner = drafter

        def start(self, run: Generation) -> Drafting:
            inner = drafter.start(run)
            scouts = inner.scouts

            def watch() -> Scouts | None:
                ran.append(scouts() is not None)
                return scouts()

            inner.scouts = watch  # type: ignore[method-assign]
            return inner

    engine = Engine(Target(model), Watching())
    for prompt in prompts:
        result = decode(engine, prompt, max_new_tokens=60)
        assert result.ids == oracle_generate(model, prompt, max_new_tokens=60)
    return ran


@pytest.mark.parametrize(("slope", "runs"), [(0.0, True), (0.05, False)])
def test_the_window_is_tried_for_a_share_of_the_time_and_stays_where_it_pays(slope, runs, repetitive, monkeypatch):
    """A text that loops in a period that its prompt does not show, by passes over which rows are free or dear."""
    prices = tuple((rows, 1.0 + slope * (rows - 1)) for rows in (1, 64))
    monkeypatch.setattr("slipstream.drafting.host_sizes.KeptCosts.passes", lambda kept: PassCosts(((64, prices),)))
    drafter = LookaheadDrafter(LookaheadSettings(pool_from_prompt=False))
    ran = scouting_cycles(drafter, repetitive, [prompt_ids(12, seed=seed) for seed in range(10)])
    if runs:
        assert ran[-1]
        assert ran[0], "nothing has to be saved up for rows that cost nothing"
    else:
        extra = sum(slope * drafter.cells for one in ran if one)  # plain cycles that the window's rows took
        assert extra <= 0.06 * len(ran)
