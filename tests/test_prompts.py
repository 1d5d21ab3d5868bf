from __future__ import annotations

from collections import Counter

from slipstream.prompts import KINDS, load_prompts


def test_at_least_six_prompts_of_each_kind():
    counts = Counter(prompt.kind for prompt in load_prompts())
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 6


def test_ids_are_unique_and_texts_differ():
    prompts = load_prompts()
    assert len({prompt.id for prompt in prompts}) == len({prompt.turns for prompt in prompts}) == len(prompts)


def test_any_first_few_prompts_are_mixed():
    assert [prompt.kind for prompt in load_prompts()[: len(KINDS)]] == list(KINDS)


def test_articles_are_long_enough_to_summarise():
    for prompt in load_prompts():
        assert all(turn.strip() for turn in prompt.turns)
        if prompt.kind == "articles":
            assert 150 <= len(prompt.turns[0].split()) <= 300
