"""Costs of sub-layers on a double whose parts take known times, and that they add up on a real one."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from families import build
from slipstream.runtime.sublayer_costs import CostTable, measure_sublayers
from slipstream.skipping.skip_set import SkipSet
from slipstream.skipping.sublayers import SubLayers
from slipstream.target.passes import Executor
from slipstream.target.target import Target

SECONDS = {"q_proj": 3.0, "gate_proj": 2.0, "input_layernorm": 0.5, "lm_head": 1.0}
"""Of a part of the attention, of the MLP, between them, and outside the layers."""


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def add(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    return found


@pytest.fixture
def target(clock: Clock) -> Target:
    """Time passes in some of its modules alone, and for every row in the LM head."""
    model = build("llama", num_hidden_layers=3)
    sublayers_of = Target(model)

    def taking(seconds: float, per_row: bool):
        def hook(module, inputs, output):
            clock.add(seconds * (inputs[0].shape[1] if per_row else 1))

        return hook

    for name, module in model.named_modules():
        if (part := name.rpartition(".")[2]) in SECONDS:
            module.register_forward_hook(taking(SECONDS[part], part == "lm_head"))
    return sublayers_of


def measured(target: Target, *widths: int) -> CostTable:
    found: CostTable = measure_sublayers(target, SubLayers.find(target.model).parts, widths, 10).costs
    return found


def test_every_part_costs_what_it_takes(target: Target) -> None:
    table = measured(target, 4)
    one, four = table.passes
    assert (one.rows, four.rows, table.prefix) == (1, 4, 10)
    for cost in (one, four):
        assert cost.attention == pytest.approx((3.0,) * 3)
        assert cost.mlp == pytest.approx((2.0,) * 3)
        assert cost.rest == pytest.approx((0.5,) * 3)
        assert cost.outside == pytest.approx(1.0 * cost.rows)
    assert table.verify(1) == pytest.approx(17.5)
    whole = SkipSet(num_layers=3, attention=(1,), mlp=(1, 2))
    assert table.draft(1, whole) == pytest.approx(17.5 - 3.0 - 2.0 - 2.0 - 0.5)


class Slower(Executor):
    """Adds so much to each pass, in which nothing can be watched."""

    runs_modules = False

    def __init__(self, add: Callable[[float], None]) -> None:
        self._add = add

    def run(self, key, function, inputs, cache):
        self._add(17.5)
        return function(inputs, cache)


def test_where_modules_cannot_be_watched_parts_have_the_shares_of_eager_passes(target: Target, clock: Clock) -> None:
    target.executor = Slower(clock.add)
    (one,) = measured(target, 1).passes
    assert one.full == pytest.approx(2 * 17.5)
    assert (one.attention, one.mlp) == (pytest.approx((2 * 3.0,) * 3), pytest.approx((2 * 2.0,) * 3))
    assert (one.rest, one.outside) == (pytest.approx((2 * 0.5,) * 3), pytest.approx(2 * 1.0))


def test_parts_add_up_to_the_pass_as_it_runs_unwatched() -> None:
    table = measured(Target(build("llama", num_hidden_layers=3)), 4)
    for cost in table.passes:
        assert cost.full > 0
        assert all(seconds >= 0 for seconds in (cost.outside, *cost.attention, *cost.mlp, *cost.rest))
    assert table.draft(1, SkipSet(num_layers=3, attention=(0, 1, 2), mlp=(0, 1, 2))) == pytest.approx(
        table.passes[0].outside
    )
    assert CostTable.from_json(table.to_json()) == table
    with pytest.raises((ValueError, TypeError)):
        CostTable.from_json({"passes": [{"rows": 1}], "prefix": 3})
