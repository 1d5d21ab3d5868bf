"""pass@k equals what enumerating all subsets of the answers gives."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest

from slipstream.bench.quality.pass_at_k import pass_at_k
from slipstream.errors import InputError


def test_it_is_the_share_of_subsets_with_a_passing_answer():
    for n in range(1, 9):
        for passed in range(n + 1):
            answers = [True] * passed + [False] * (n - passed)
            for k in range(1, n + 1):
                subsets = list(combinations(answers, k))
                assert pass_at_k(n, passed, k) == float(Fraction(sum(map(any, subsets)), len(subsets)))


def test_many_answers_do_not_overflow():
    assert pass_at_k(2000, 1, 1000) == 0.5


@pytest.mark.parametrize(("n", "passed", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0), (0, 0, 1)])
def test_impossible_counts_are_refused(n, passed, k):
    with pytest.raises(InputError):
        pass_at_k(n, passed, k)
