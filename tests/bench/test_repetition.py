"""The repetition rate is the share of n-grams that occurred before in the same answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.bench.repetition import Repetition, repetition
from slipstream.errors import InputError


def test_a_text_of_new_words_does_not_repeat():
    assert repetition(range(20)) == Repetition(0, 17)


def test_a_loop_repeats_all_but_its_first_round():
    assert repetition([1, 2, 3] * 10) == Repetition(27 - 3, 27)


def test_answers_shorter_than_an_ngram_count_nothing():
    assert repetition([5, 5, 5]) == Repetition(0, 0)
    assert repetition([5, 5, 5]).rate == 0.0


def test_rates_are_added_up_by_ngrams_not_by_answers():
    both = repetition([1] * 8).plus(repetition(range(100)))
    assert both.rate == 4 / (5 + 97)


def test_an_ngram_of_nothing_is_refused():
    with pytest.raises(InputError, match="n = 0"):
        repetition([1, 2], n=0)


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 5))
def test_it_counts_what_a_search_of_the_text_so_far_finds(tokens, n):
    found = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
    repeated = sum(any(found[j] == ngram for j in range(i)) for i, ngram in enumerate(found))
    assert repetition(tokens, n) == Repetition(repeated, len(found))
