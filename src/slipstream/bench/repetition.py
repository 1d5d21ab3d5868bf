"""How much a text repeats itself: drafters foresee a loop easily, so a tau says little without this beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slipstream.errors import InputError

NGRAM = 4


class Repetition(NamedTuple):
    """n-grams of answers, counted within each answer: no n-gram spans two, none is looked for in another."""

    num_repeated: int = 0
    """n-grams that occurred before in the same answer; they may overlap."""
    num_ngrams: int = 0

    @property
    def rate(self) -> float:
        """Share of n-grams that occurred before; 0 where no answer is as long as one."""
        return self.num_repeated / self.num_ngrams if self.num_ngrams else 0.0

    def plus(self, other: Repetition) -> Repetition:
        """Both added up."""
        return Repetition(self.num_repeated + other.num_repeated, self.num_ngrams + other.num_ngrams)


def repetition(token_ids: Sequence[int], n: int = NGRAM) -> Repetition:
    """How many n-grams of one answer's tokens occurred before in it."""
    if n < 1:
        raise InputError(f"n-grams of n = {n}; n must be at least 1")
    ngrams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return Repetition(len(ngrams) - len(set(ngrams)), len(ngrams))
