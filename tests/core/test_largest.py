"""The largest entries of wide rows are those that a look at every entry finds, ties and removed tokens included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slipstream.core import largest
from slipstream.core.largest import argmax, argmax_of_sum, topk
from slipstream.core.sampling import gumbel_rows

WIDTHS = (100, 4096, 4097, 5003, 8192, 9 * 1187)
"""One that is not cut; divided by a number of classes and not."""

wide = st.sampled_from(WIDTHS)
seeds = st.integers(0, 2**32 - 1)


def rows_of(seed: int, rows: int, width: int, *, levels: int | None = None, kept: float = 1.0) -> Tensor:
    """Logits. levels: how many different ones there are, so that many are equal. kept: share that is not -inf."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=rng) * 3
    if levels is not None:
        values = (values * levels / 10).round() * 10 / levels
    return values.masked_fill(torch.rand(rows, width, generator=rng) >= kept, -torch.inf)


def first_of_largest(values: Tensor) -> list[int]:
    """By the definition."""
    return [row.index(max(row)) for row in values.tolist()]


@settings(max_examples=40, deadline=None)
@given(seeds, wide, st.sampled_from([None, 1, 5]), st.sampled_from([1.0, 0.5, 0.001, 0.0]))
def test_argmax_is_the_first_of_the_largest(seed, width, levels, kept):
    values = rows_of(seed, 5, width, levels=levels, kept=kept)
    assert argmax(values).tolist() == first_of_largest(values)
    assert argmax(values[2]).item() == first_of_largest(values[2:3])[0]


def test_argmax_of_numbers_that_are_none_is_as_pytorchs():
    values = rows_of(0, 3, 5003)
    values[1, 4999], values[2, 17] = torch.nan, torch.nan
    assert argmax(values).tolist() == values.argmax(dim=-1).tolist()


@settings(max_examples=40, deadline=None)
@given(seeds, wide, st.sampled_from([1, 7, 60]))
def test_topk_finds_the_k_largest_in_order(seed, width, k):
    values = rows_of(seed, 4, width).double()  # none are equal
    found, places = topk(values, k)
    expected = values.topk(k, dim=-1)
    assert torch.equal(found, expected.values)
    assert torch.equal(places, expected.indices)


@settings(max_examples=40, deadline=None)
@given(seeds, wide, st.sampled_from([1, 5]), st.sampled_from([1.0, 0.001, 0.0]))
def test_topk_names_each_place_once_where_many_are_equal_or_removed(seed, width, levels, kept):
    values = rows_of(seed, 4, width, levels=levels, kept=kept)
    found, places = topk(values, 10)
    assert torch.equal(found, values.topk(10, dim=-1).values)
    assert torch.equal(values.gather(1, places), found)
    assert all(len(set(row)) == 10 for row in places.tolist())


@settings(max_examples=40, deadline=None)
@given(seeds, wide, st.sampled_from([0.3, 1.0, 3.0]), st.sampled_from([1.0, 0.01, 0.0]))
def test_the_winner_of_a_sum_is_that_of_the_whole_rows(seed, width, temperature, kept):
    """Coupled choices: logits of 6 nodes at 3 positions, of any temperature and truncation."""
    values = rows_of(seed, 6, width, kept=kept) / temperature
    noise, rows = gumbel_rows(seed, 0, torch.arange(3), width), torch.tensor([0, 1, 1, 2, 2, 0])
    assert torch.equal(argmax_of_sum(values, noise, rows), (values.double() + noise[rows]).argmax(dim=-1))


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([4096, 5003]))
def test_of_equal_sums_the_first_wins(seed, width):
    values = rows_of(seed, 5, width, levels=1)
    noise, rows = rows_of(seed + 1, 2, width, levels=1).double(), torch.tensor([0, 1, 1, 0, 0])
    assert argmax_of_sum(values, noise, rows).tolist() == first_of_largest(values.double() + noise[rows])


def test_rows_that_many_could_win_are_searched_whole(monkeypatch):
    """With one class tried, most rows are unsure; a rule that left it at that would choose otherwise."""
    monkeypatch.setattr(largest, "_TRIED", 1)
    values, rows = rows_of(1, 40, 5003) / 3, torch.arange(40) % 5
    noise = gumbel_rows(1, 0, torch.arange(5), 5003)
    assert torch.equal(argmax_of_sum(values, noise, rows), (values.double() + noise[rows]).argmax(dim=-1))


def test_a_sum_with_a_number_that_is_none_is_as_pytorchs():
    values, noise = rows_of(2, 4, 5003), gumbel_rows(2, 0, torch.arange(1), 5003)
    values[1, 77] = torch.nan
    rows = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(argmax_of_sum(values, noise, rows), (values.double() + noise[rows]).argmax(dim=-1))


@pytest.mark.parametrize("rows", [1, 12])
def test_wide_rows_are_not_summed_whole(rows, monkeypatch):
    """The work: a sum over a whole row is seen only where rows are few."""
    seen = []
    right = torch.Tensor.double

    def watched(self):
        seen.append(self.shape[-1])
        return right(self)

    values, noise = rows_of(3, rows, 8192), gumbel_rows(3, 0, torch.arange(1), 8192)
    values[:, 100] = 40.0  # as sure as most rows of a model are
    monkeypatch.setattr(torch.Tensor, "double", watched)
    argmax_of_sum(values, noise, torch.zeros(rows, dtype=torch.int64))
    assert (8192 in seen) is (rows == 1)
