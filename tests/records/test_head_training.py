"""The page on training says of heads of the real model what their records say."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

import pytest

from shipped_records import RECORDS

PAGE = RECORDS.parents[1] / "docs" / "train-a-head.md"


@pytest.fixture(scope="module")
def ends() -> dict[str, dict[str, Any]]:
    """Where each head's curve ends."""
    record = json.loads((RECORDS / "head-training-smollm2.json").read_text(encoding="utf-8"))
    return {arm["name"]: arm["curve"][-1] for arm in record["arms"]}


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_heads_of_equal_compute_are_what_the_page_says(method: str, ends: dict[str, dict[str, Any]]) -> None:
    end = ends[f"{method}, 3 steps ahead"]
    taus = json.loads((RECORDS / "tau-eagle3-smollm2-bf16.json").read_text(encoding="utf-8"))
    name = {"eagle": "eagle2-60", "eagle3": "eagle3-60"}[method]
    rows = [one for one in taus["rows"] if one["entrant"] == name and one["task"] != "all"]
    by_heat = {heat: mean(one["tau"] for one in rows if one["temperature"] == heat) for heat in (0, 1)}
    right = " ".join(f"{100 * share:.1f}" for share in end["held_out_top1"])
    row = (
        f"| `{method}` | {round(end['tokens'] / 1000)} thousand | {right} | {end['tau']['top 10 to depth 5']:.2f} "
        f"| {by_heat[0]:.2f} | {by_heat[1]:.2f} |"
    )
    assert row in PAGE.read_text(encoding="utf-8")


def test_both_had_the_same_processor_time(ends: dict[str, dict[str, Any]]) -> None:
    spent = [ends[f"{method}, 3 steps ahead"]["processor_s"] for method in ("eagle", "eagle3")]
    assert all(1800 <= one < 1830 for one in spent)


@pytest.mark.parametrize(
    ("label", "name"), [("one step ahead", "eagle, 1 step ahead"), ("three", "eagle, 3 steps ahead")]
)
def test_steps_ahead_are_compared_as_the_page_says(label: str, name: str, ends: dict[str, dict[str, Any]]) -> None:
    end = ends[name]
    right = " ".join(f"{100 * share:.1f}" for share in end["held_out_top1"])
    row = f"| {label} | {round(end['tokens'] / 1000)} thousand | {right} | {end['tau']['top 10 to depth 5']:.2f} |"
    assert row in PAGE.read_text(encoding="utf-8")
    assert 1800 <= end["processor_s"] < 1830


def test_own_answers_are_compared_as_the_page_says(ends: dict[str, dict[str, Any]]) -> None:
    own, given = (f"{100 * ends[name]['held_out_top1'][0]:.1f} %" for name in ("own answers", "given text"))
    said = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"{own} of the held-out answers after own ones and of {given} after given ones" in said
