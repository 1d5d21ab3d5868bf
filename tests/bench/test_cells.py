"""Cells of a run: paired speeds, intervals that hold what they should, and an exit code that tells of a slow one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import cells

    yield cells
    sys.modules.pop("cells")


def times(seconds) -> dict:
    return {(place, 0, 0): (32, float(one)) for place, one in enumerate(seconds)}


def test_speed_is_of_the_turns_that_both_answered(script):
    ours, theirs = times([1.0, 1.0, 9.0]), times([2.0, 2.0])
    assert script.interval(ours, theirs) == pytest.approx((2.0, 2.0, 2.0))
    assert script.interval(times([1.0]), times([3.0])) == pytest.approx((3.0, 3.0, 3.0))


def test_turns_stay_paired_so_that_easy_and_hard_ones_do_not_widen_the_interval(script):
    theirs = np.linspace(1, 50, 12)
    low, speed, high = script.interval(times(theirs / 1.1), times(theirs))
    assert (low, speed, high) == pytest.approx((1.1, 1.1, 1.1))


def test_the_interval_holds_the_truth_about_as_often_as_it_says(script):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        theirs = rng.uniform(1, 2, 16)
        low, _, high = script.interval(times(theirs * rng.normal(1, 0.1, 16)), times(theirs))
        held += low <= 1 <= high
    assert held >= 48


def test_a_slow_cell_is_named_and_exits_with_1(script, monkeypatch, capsys, tmp_path):
    found = {"entrant": "eagle2", "temperature": 0.0, "task": "gsm8k", "turns": 8, "speed": 0.9, "low": 0.85}
    monkeypatch.setattr(script, "measured", lambda run, against: iter([found | {"high": 0.96}]))
    assert script.main([str(tmp_path)]) == 1
    assert "0.90 [0.85, 0.96]  under the limit" in capsys.readouterr().out
    monkeypatch.setattr(script, "measured", lambda run, against: iter([found | {"high": 0.97}]))
    assert script.main([str(tmp_path)]) == 0


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_no_cell_on_the_real_model_is_under_the_limit(dtype):
    record = json.loads((REPOSITORY / f"benchmarks/records/cells-smollm2-{dtype}.json").read_text())
    assert record["failed"] == sum(one["high"] < record["limit"] for one in record["cells"]) == 0
    assert record["limit"] == 0.97
    assert {one["turns"] for one in record["cells"]} <= {8, 16}
    assert len(record["cells"]) >= 60


def test_looking_costs_what_the_docs_say():
    record = json.loads((REPOSITORY / "benchmarks/records/looking-smollm2-bf16.json").read_text())
    said = " ".join((REPOSITORY / "docs/methods.md").read_text(encoding="utf-8").split())

    def mean(entrant, temperature):
        cells = record["cells"]
        speeds = [one["speed"] for one in cells if (one["entrant"], one["temperature"]) == (entrant, temperature)]
        assert len(speeds) == 6
        return sum(speeds) / 6

    assert min(mean("eagle2", 0), mean("eagle2", 1)) >= 0.95, "looking costs 5 % of an answer of 64 tokens at most"
    head, both = ([f"{mean(name, heat):.2f}" for heat in (0, 1)] for name in ("eagle2", "auto"))
    assert f"ran at {head[0]} at T = 0 and {head[1]} at T = 1 of plain decoding's speed with `eagle2`" in said
    assert f"and {both[0]} and {both[1]} with `auto`" in said
