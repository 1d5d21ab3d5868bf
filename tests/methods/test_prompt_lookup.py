from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doubles import decode
from families import prompt_ids
from oracle import oracle_generate
from random_trees import token_paths
from slipstream.core.rules import GreedyRule
from slipstream.core.tree import DraftTree
from slipstream.drafting.base import Drafting, Generation
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.prompt_lookup import (
    NgramIndex,
    PromptLookupDrafter,
    PromptLookupSettings,
    continuation,
    match_length,
)
from slipstream.methods.registry import build_drafter
from slipstream.runtime.costs import PassCosts
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

texts = st.lists(st.integers(0, 2), min_size=1, max_size=20)


def start(text: list[int], max_depth: int = 100, **sizes: Any) -> tuple[Drafting, Generation]:
    """A lookup at work on `text`, of a fixed size."""
    device = torch.device("cpu")
    target = cast(Target, SimpleNamespace(device=device))  # all that lookup asks of a target
    run = Generation(target, KVCache(0, device), GreedyRule(), list(text), len(text), max_depth)
    return PromptLookupDrafter(PromptLookupSettings(**{"branches": 4, **sizes})).start(run), run


def proposed(text: list[int], max_depth: int = 100, **sizes: Any) -> DraftTree:
    return start(text, max_depth, **sizes)[0].propose()


def longest_paths(tree: DraftTree) -> list[tuple[int, ...]]:
    """The paths to the leaves, in the order in which they were added."""
    inner = set(tree.parents.tolist())
    return [path for node, path in enumerate(token_paths(tree)) if node not in inner]


def naive_matches(text: list[int], max_ngram: int) -> list[int]:
    """Where the text's last n tokens occurred before: longest n first, then the latest."""
    found: list[int] = []
    for n in range(min(max_ngram, len(text)), 0, -1):
        ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
        found += [end for end in reversed(ends) if end not in found]
    return found


@given(texts, st.integers(1, 4))
def test_matches_equal_a_search_through_the_text(text: list[int], max_ngram: int) -> None:
    index = NgramIndex(max_ngram)
    index.extend(text)
    assert list(index.matches(text)) == naive_matches(text, max_ngram)


@given(texts, st.lists(st.integers(0, 5), max_size=5))
def test_an_index_that_grows_with_the_text_finds_the_same(text: list[int], cuts: list[int]) -> None:
    index, seen = NgramIndex(3), 0
    for step in cuts:
        seen = min(seen + step, len(text))
        index.extend(text[:seen])
    index.extend(text)
    assert list(index.matches(text)) == naive_matches(text, 3)


@given(texts, st.integers(1, 5), st.integers(1, 6))
def test_the_tree_holds_the_continuations_of_the_first_matches(text: list[int], branches: int, length: int) -> None:
    tree = proposed(text, branches=branches, length=length)
    matches = naive_matches(text, 3)[:branches]
    expected = {tuple(continuation(text, end, length)) for end in matches}
    assert set(longest_paths(tree)) == expected
    assert len(set(token_paths(tree))) == tree.num_nodes <= length * branches
    assert all(parent < node for node, parent in enumerate(tree.parents.tolist()))
    assert tree.max_depth == (length if matches else 0)
    assert tree.q is None


def test_the_continuation_of_the_longest_match_is_drafted() -> None:
    text = [1, 2, 3, 4, 5, 9, 3, 8, 8, 1, 2, 3]
    assert token_paths(proposed(text, branches=1, length=3)) == [(4,), (4, 5), (4, 5, 9)]


def test_the_latest_of_equal_matches_comes_first() -> None:
    text = [1, 2, 7, 1, 2, 8, 1, 2]
    assert longest_paths(proposed(text, branches=2, length=1)) == [(8,), (7,)]


def test_a_match_next_to_the_end_of_the_text_runs_on_periodically() -> None:
    """As published it would be dropped, since fewer than `length` tokens follow it."""
    assert longest_paths(proposed([5, 1, 2, 1, 2], branches=1, length=5)) == [(1, 2, 1, 2, 1)]
    assert longest_paths(proposed([7, 7], branches=1, length=4)) == [(7, 7, 7, 7)]


@given(texts, st.integers(0, 19), st.integers(0, 40))
def test_a_continuation_reads_on_in_what_it_has_itself_produced(text: list[int], start: int, length: int) -> None:
    start = min(start, len(text) - 1)
    grown = list(text)
    for offset in range(length):
        grown.append(grown[start + offset])
    assert list(continuation(text, start, length)) == grown[len(text) :]


@pytest.mark.parametrize("text", [[4], [1, 2, 3]])
def test_a_text_without_repetition_drafts_nothing(text: list[int]) -> None:
    tree = proposed(text)
    assert (tree.num_nodes, tree.max_depth) == (0, 0)


def test_no_draft_is_deeper_than_there_is_room() -> None:
    assert proposed([1, 2, 1, 2], max_depth=2).depth.tolist() == [1, 2]


def test_shorter_ngrams_are_left_out_of_the_index_when_longer_ones_are_not_asked_for() -> None:
    text = [1, 2, 3, 9, 8, 3, 7, 2, 3]  # "2 3" was followed by 9, "3" last by 7
    assert longest_paths(proposed(text, max_ngram=1, branches=1, length=1)) == [(7,)]
    assert longest_paths(proposed(text, max_ngram=2, branches=1, length=1)) == [(9,)]


def test_the_lookup_follows_the_text_as_it_grows() -> None:
    drafting, run = start([1, 2, 3], length=2, branches=1)
    assert drafting.propose().num_nodes == 0
    run.tokens += [4, 1, 2]
    assert longest_paths(drafting.propose()) == [(3, 4)]
    run.tokens += [5, 1, 2]
    assert longest_paths(drafting.propose()) == [(5, 1)]


def test_two_generations_share_nothing() -> None:
    drafter = PromptLookupDrafter(PromptLookupSettings(branches=4))
    device = torch.device("cpu")
    target = cast(Target, SimpleNamespace(device=device))
    run = Generation(target, KVCache(0, device), GreedyRule(), [1, 2, 1], 3, 100)
    first = drafter.start(run)
    assert first.propose().num_nodes > 0
    second = drafter.start(Generation(run.target, run.cache, run.rule, [3, 2, 4], 3, 100))
    assert second.propose().num_nodes == 0


@given(texts, st.data())
def test_match_length_counts_equal_tokens_backwards(text: list[int], data: st.DataObject) -> None:
    end = data.draw(st.integers(1, len(text)))
    expected = next((n for n in range(min(end, 12)) if text[end - 1 - n] != text[-1 - n]), min(end, 12))
    assert match_length(text, end) == expected


@given(texts, st.integers(1, 12))
@settings(deadline=None)
def test_a_total_keeps_the_likeliest_guesses(text: list[int], total: int) -> None:
    every, some = proposed(text, length=6), proposed(text, length=6, total=total)
    assert some.num_nodes == min(total, every.num_nodes)
    assert set(token_paths(some)) <= set(token_paths(every))
    best = every.log_value.sort(descending=True).values[:total]
    torch.testing.assert_close(some.log_value.sort(descending=True).values, best)


def test_draft_slots_hold_the_largest_tree_and_its_root() -> None:
    assert PromptLookupDrafter(PromptLookupSettings(length=3, branches=2)).draft_slots == 1 + 3 * 2
    assert PromptLookupDrafter(PromptLookupSettings(length=3, branches=2, total=4)).draft_slots == 1 + 4
    assert PromptLookupDrafter().draft_slots == 64


@pytest.mark.parametrize("value", [0, 1.5, "many"])
@pytest.mark.parametrize("name", ["max_ngram", "length", "branches"])
def test_settings_that_are_no_count_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"prompt-lookup {name} is {value!r}; it must be at least 1"):
        PromptLookupSettings(**{name: value})


@pytest.mark.parametrize("value", [0, 1.5, True, "many"])
def test_a_total_that_is_neither_a_count_nor_auto_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=f"total is {value!r}; it must be at least 1, a whole number, or 'auto'"):
        PromptLookupDrafter(PromptLookupSettings(total=value))


@pytest.mark.parametrize(
    ("options", "by_cost", "length", "branches", "most"),
    [
        ({}, True, 24, 4, 63),
        ({"max_ngram": 2}, True, 24, 4, 63),
        ({"total": "auto"}, True, 24, 4, 63),
        ({"total": "auto", "length": 5, "branches": 2}, True, 5, 2, 10),
        ({"length": 3}, False, 3, 4, 12),
        ({"branches": 1}, False, 10, 1, 10),
        ({"branches": 1, "length": 10, "total": 10}, False, 10, 1, 10),
        ({"total": 6}, False, 10, 4, 6),
    ],
)
def test_explicit_sizes_stay_as_given(
    options: dict[str, Any], by_cost: bool, length: int, branches: int, most: int
) -> None:
    drafter = cast(PromptLookupDrafter, build_drafter("prompt-lookup", cast(Target, None), options))
    assert (drafter.sizes.by_cost, drafter.length, drafter.branches) == (by_cost, length, branches)
    assert drafter.sizes.most == most


# -- by cost -------------------------------------------------------------------------------------------------------

FREE, DEAR = ((1, 1.0), (64, 1.0)), ((1, 1.0), (2, 9.0), (64, 99.0))
HOSTILE = {
    "periodic": [3, 1, 4, 1, 5] * 5,
    "constant": [7] * 20,
    "random": prompt_ids(30, seed=5),
    "always wrong": [token for step in range(1, 8) for token in (2, 9 + step, 3, 20 + step)],
}


@pytest.mark.parametrize("prices", [FREE, DEAR], ids=["free", "dear"])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 4}])
@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("method", ["prompt-lookup", "lookahead"])
def test_text_is_that_of_plain_decoding_whatever_passes_cost(method, text, how, prices, family_model, monkeypatch):
    monkeypatch.setattr("slipstream.drafting.host_sizes.KeptCosts.passes", lambda kept: PassCosts(((64, prices),)))
    model, prompt = family_model("llama"), HOSTILE[text]
    expected = oracle_generate(model, prompt, max_new_tokens=30, **how)
    target = Target(model)
    engine = Engine(target, build_drafter(method, target, {}))
    found = [decode(engine, prompt, max_new_tokens=30, **how) for _ in range(2)]
    assert [one.ids for one in found] == [expected] * 2
    num_drafted = sum(step.num_drafted for one in found for step in one.steps)
    assert num_drafted == 0 if prices is DEAR else num_drafted > 0
