"""Short answers are compared as SQuAD's evaluation compares them."""

from __future__ import annotations

import pytest

from slipstream.bench.quality.short_answers import short_match


@pytest.mark.parametrize("answer", ["The Beatles", "beatles", "  the  beatles. ", '"Beatles"!', "BEATLES"])
def test_case_articles_and_punctuation_do_not_matter(answer):
    assert short_match(answer, ["the Beatles"]) == {"exact": 1.0, "contains": 1.0}


def test_a_sentence_with_the_answer_contains_it_without_being_it():
    assert short_match("It was played by the Beatles in 1963.", ["The Beatles"]) == {"exact": 0.0, "contains": 1.0}


@pytest.mark.parametrize("answer", ["", "Beat", "the Beatlesque", "the Rolling Stones"])
def test_parts_of_words_and_other_words_do_not_match(answer):
    assert short_match(answer, ["Beatles"]) == {"exact": 0.0, "contains": 0.0}


def test_the_best_of_several_references_counts():
    assert short_match("Ringo", ["John", "Ringo"])["exact"] == 1.0


def test_a_reference_of_articles_alone_matches_nothing():
    assert short_match("", ["the"]) == {"exact": 0.0, "contains": 0.0}
