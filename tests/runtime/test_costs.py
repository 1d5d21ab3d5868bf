"""Prices of rows: measured quickly, then corrected by the cycles themselves."""

from __future__ import annotations

import random

import pytest
import torch

from families import FAMILIES, build
from slipstream.runtime import costs
from slipstream.runtime.costs import RowPrices, quick_verification
from slipstream.target.target import Target

SIZES = (1, 2, 4, 8, 16)


def test_prices_are_in_plain_cycles_and_of_the_next_larger_size() -> None:
    prices = RowPrices(SIZES, [(1, 2.0), (16, 5.0)])
    assert prices.prices == pytest.approx([1.0, 1.1, 1.3, 1.7, 2.5])
    assert [prices.of(rows) for rows in (1, 3, 4, 5, 16, 99)] == [prices.prices[place] for place in (0, 2, 2, 3, 4, 4)]


def test_more_rows_never_cost_less() -> None:
    prices = RowPrices(SIZES, [(1, 2.0), (16, 2.0)])
    for _ in range(30):
        prices.note(2, 3.0)
        prices.note(1, 2.0)
    assert prices.prices == sorted(prices.prices)
    assert prices.of(16) >= prices.of(2) > 1.2


@pytest.mark.parametrize("drift", [0.0, 0.01])
def test_cycles_correct_what_was_measured_and_slow_moments_do_not(drift: float) -> None:
    """The pass is 1, but a cycle that drafts takes 0.3 more; meanwhile the machine grows slower, or does not."""
    prices, rng = RowPrices(SIZES, [(1, 1.0), (16, 1.0)]), random.Random(2)
    for cycle in range(300):
        rows = rng.choice((1, 1, 4))
        speed = (1 + drift) ** cycle * rng.lognormvariate(0, 0.05)
        prices.note(rows, speed * (1.3 if rows > 1 else 1.0))
    assert prices.of(4) == pytest.approx(1.3, rel=0.06)


def test_a_correction_holds_for_sizes_like_it() -> None:
    prices = RowPrices(SIZES, [(1, 1.0), (16, 1.2)])
    before = list(prices.prices)
    for _ in range(40):
        prices.note(4, 1.5)
        prices.note(1, 1.0)
    assert prices.of(1) == 1
    assert all(after > 1.05 * price for after, price in zip(prices.prices[1:], before[1:], strict=True))


def test_prices_are_stretched_to_what_was_measured_elsewhere() -> None:
    prices = RowPrices(SIZES, [(1, 1.0), (16, 1.5)])
    longer = prices.stretched([(1, 4.0), (16, 8.0)])
    assert longer.of(16) == pytest.approx(2.0)
    assert 1 < prices.of(4) < longer.of(4)
    assert prices.of(16) == pytest.approx(1.5)
    flat = RowPrices(SIZES, [(1, 1.0), (16, 1.0)]).stretched([(1, 1.0), (16, 3.0)])
    assert flat.of(16) == pytest.approx(3.0)


def test_one_slow_moment_hardly_changes_a_price() -> None:
    prices = RowPrices(SIZES, [(1, 1.0), (16, 1.5)])
    before = prices.of(4)
    prices.note(4, 100.0)
    assert prices.of(4) < 1.1 * before


def test_drafting_without_a_plain_cycle_keeps_prices_apart_from_the_moment() -> None:
    prices = RowPrices(SIZES, [(1, 1.0), (16, 1.5)])
    before = prices.of(4)
    for _ in range(200):
        prices.note(4, 3.0)
    assert prices.of(4) < 1.35 * before


@pytest.mark.parametrize("prefix", [1, 10, 500])
def test_a_quick_measurement_takes_a_dozen_passes_after_a_prefix_that_fits(prefix, monkeypatch) -> None:
    target = Target(build("llama", max_position_embeddings=40))
    passes: list[tuple[int, int]] = []
    forward = Target.forward

    def watch(self, tokens, positions, visible, cache, **rest):
        passes.append((len(tokens), cache.length))
        return forward(self, tokens, positions, visible, cache, **rest)

    monkeypatch.setattr(Target, "forward", watch)
    monkeypatch.setattr(costs, "_QUICK_S", 0.0)
    found = quick_verification(target, (1, 4, 16, 20), prefix)
    assert [rows for rows, _ in found] == [1, 4, 16, 20]
    assert [seconds for _, seconds in found] == sorted(seconds for _, seconds in found)
    (_, at_first), *timed = passes
    assert at_first == 0
    assert timed == [(rows, min(prefix, 39)) for rows in (1, 4, 16, 20)] * 2


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3", "gpt2"])
def test_a_prefix_of_zeros_costs_passes_of_finite_numbers(name: str) -> None:
    target = Target(FAMILIES[name]())
    seen: list[bool] = []
    forward = target.model.forward

    def watch(*args, **rest):
        output = forward(*args, **rest)
        seen.append(bool(torch.isfinite(output.logits).all()))
        return output

    target.model.forward = watch
    quick_verification(target, (1, 8), 30)
    assert seen
    assert all(seen)
