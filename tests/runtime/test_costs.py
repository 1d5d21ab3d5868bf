"""What passes cost: interpolation, how timings are taken, and that measuring fits the target and the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch

from families import FAMILIES, build
from slipstream.runtime import costs, timing
from slipstream.runtime.costs import ROWS, Costs, LevelCosts, PassCosts, measure_levels, measure_passes
from slipstream.runtime.timing import Passes, medians, rounds_of, spread
from slipstream.target.target import Target

CPU = torch.device("cpu")
SHORT, LONG = ((1, 1.0), (4, 2.5), (16, 4.9)), ((1, 2.0), (4, 4.0))
PASSES = PassCosts(((64, SHORT), (1024, LONG)))


def test_seconds_lie_on_the_line_between_measured_rows_and_contexts() -> None:
    assert [PASSES.seconds(rows, 64) for rows in (1, 2, 4, 10, 28)] == pytest.approx([1.0, 1.5, 2.5, 3.7, 7.3])
    assert [PASSES.seconds(1, context) for context in (3, 64, 544, 1024, 1984)] == pytest.approx([1, 1, 1.5, 2, 3])
    assert [seconds for _, seconds in PASSES.at(1024)] == pytest.approx([2.0, 4.0, 12.0])


def test_costs_of_a_cycle_are_those_of_its_passes_and_levels() -> None:
    found = Costs.of(PASSES, LevelCosts(8, 0.5, 0.75), context=64, depth=3)
    assert found == Costs(SHORT, (0.0, 0.5, 1.25, 2.0))


def test_costs_come_back_from_json_and_nothing_else_does() -> None:
    assert PassCosts.from_json(PASSES.to_json()) == PASSES
    assert LevelCosts.from_json(LevelCosts(8, 0.5, 0.75).to_json()) == LevelCosts(8, 0.5, 0.75)
    for wrong in ([], [[64, []]], [[64, [[4, 1.0], [1, 2.0]]]], [[64, [[1, -1.0]]]], [[64, [[1, "x"]]]], 7):
        with pytest.raises((ValueError, TypeError)):
            PassCosts.from_json(wrong)


# -- timing ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which calls push on."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def taking(clock: list[float], seconds: Iterator[float], calls: list[str], name: str = "") -> Callable[[], None]:
    def call() -> None:
        calls.append(name)
        clock[0] += next(seconds)

    return call


def test_calls_take_turns_and_the_first_round_warms_up(clock: list[float]) -> None:
    calls: list[str] = []
    one = taking(clock, iter([50, 1, 1, 9, 9, 1]), calls, "a")
    other = taking(clock, iter([50, 3, 2, 7, 2, 2]), calls, "b")
    times = rounds_of([one, other], CPU, budget_s=1000, most=5)
    assert calls == ["a", "b"] * 6
    assert times == [[1, 1, 9, 9, 1], [3, 2, 7, 2, 2]]
    assert medians(times) == [1, 2]


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 3), (3.9, 3), (4.0, 4), (99.0, 8)])
def test_rounds_end_with_the_budget(clock: list[float], budget_s: float, rounds: int) -> None:
    calls: list[str] = []
    rounds_of([taking(clock, (1.0 for _ in count()), calls)], CPU, budget_s=budget_s)
    assert len(calls) == rounds


def test_the_spread_tells_a_quiet_machine_from_a_busy_one() -> None:
    assert spread([[1.0, 1.0, 1.1], [2.0, 2.0, 9.0]]) == 0.0
    assert spread([[1.0, 2.0, 2.0], [2.0, 4.0, 4.0]]) == 1.0


# -- real passes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, cached tokens) of every pass of any target."""
    seen: list[tuple[int, int]] = []
    forward = Target.forward

    def watch(self: Target, tokens: Any, positions: Any, visible: Any, cache: Any, **rest: Any) -> Any:
        seen.append((len(tokens), cache.length))
        return forward(self, tokens, positions, visible, cache, **rest)

    monkeypatch.setattr(Target, "forward", watch)
    return seen


@pytest.mark.parametrize("limit", [20, 400])
def test_contexts_fit_the_target(limit: int, passes: list[tuple[int, int]]) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": limit}
    found = measure_passes(Target(build("gpt2", sizes=sizes)), budget_s=9.0).costs
    assert [context for context, _ in found.by_context] == ([19] if limit == 20 else [64, 399])
    assert [rows for rows, _ in found.at(64)] == list(ROWS)
    assert {context for _, context in passes} == {0, *(context for context, _ in found.by_context)}


def test_costs_never_fall_with_rows_or_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says."""
    noise = torch.rand(999, generator=torch.Generator().manual_seed(0)).tolist()
    monkeypatch.setattr(costs, "medians", lambda times: [1.0 + noise.pop() for _ in times])
    found = measure_passes(Target(build("llama")), budget_s=9.0).costs
    (short, _), (long, _) = found.by_context
    for context in (short, long):
        seconds = [found.seconds(rows, context) for rows in ROWS]
        assert seconds == sorted(seconds)
    assert all(found.seconds(rows, short) <= found.seconds(rows, long) for rows in ROWS)


def test_a_slow_target_is_measured_at_few_sizes(passes: list[tuple[int, int]]) -> None:
    found = measure_passes(Target(build("llama")), budget_s=0.0)
    assert [rows for rows, _ in found.costs.at(64)] == [1, 8]
    assert sum(context == 64 for _, context in passes) == 2 + 3 * 2
    assert found.seconds > 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3", "gpt2"])
def test_a_prefix_of_zeros_costs_passes_of_finite_numbers(name: str) -> None:
    logits = Passes(Target(FAMILIES[name]()), 8, 30).run(8).logits
    assert bool(torch.isfinite(logits).all())


def test_levels_beyond_the_first_cost_the_same_each(clock: list[float]) -> None:
    def draft(levels: int) -> None:
        clock[0] += 0.5 + 0.25 * (levels - 1)

    assert measure_levels(CPU, 8, 5, draft).costs == LevelCosts(8, 0.5, 0.25)
