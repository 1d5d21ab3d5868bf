"""What the docs say of passes, of where a cycle's time goes, and of compiling, is what the records say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shipped_records import RECORDS

PROFILE = json.loads((RECORDS / "profile-smollm2-bf16.json").read_text(encoding="utf-8"))
PASSES, PASSES_FLOAT32 = (
    json.loads((RECORDS / f"compiled-passes-{dtype}.json").read_text(encoding="utf-8")) for dtype in ("bf16", "fp32")
)
FEW_ROWS = [
    json.loads((RECORDS / f"few-rows-{dtype}.json").read_text(encoding="utf-8"))["sizes"] for dtype in ("bf16", "fp32")
]
START = json.loads((RECORDS / "compiled-start-bf16.json").read_text(encoding="utf-8"))
PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
PARTS = ("draft_passes", "target_passes", "drafting", "choosing", "rest")
METHODS = ("eagle2", "auto")
"""Those that draft with the head."""


def test_the_parts_of_a_profiled_cycle_add_up() -> None:
    for row in PROFILE["rows"]:
        parts = row["parts_ms"]
        assert sum(parts.values()) == pytest.approx(row["cycle_ms"], abs=0.02)
        outside = 1 - (parts["draft_passes"] + parts["target_passes"]) / row["cycle_ms"]
        assert outside == pytest.approx(row["outside_passes"], abs=1e-3)
        assert row["outside_passes"] > 0


def test_no_cycle_is_to_a_tenth_outside_passes_but_those_that_the_page_names() -> None:
    over = {
        (row["method"], row["runtime"], row["temperature"]) for row in PROFILE["rows"] if row["outside_passes"] >= 0.1
    }
    where = (("eager", 1), ("packed", 1), ("compiled", 1), ("compiled", 0))
    assert over == {("auto", "packed", 0), *((method, *place) for method in METHODS for place in where)}
    said = (
        "It is more than a tenth of a cycle of these two, and of no other: sampled, and greedy in compiled passes and, "
        "of `auto`, in packed ones."
    )
    assert said in re.sub(r"\s+", " ", PAGE)
    outside = [sum(row["parts_ms"][part] for part in PARTS[2:]) for row in PROFILE["rows"] if row["method"] in METHODS]
    assert f"takes {min(outside):.0f} to {max(outside):.0f} ms of a cycle of `eagle2` and `auto`" in PAGE


def test_the_page_shows_the_profile() -> None:
    greedy, sampled = PAGE[PAGE.index("**Where a cycle's time goes.**") :].split("Sampled at temperature 1", 1)
    for row in PROFILE["rows"]:
        cells = [f"{row['cycle_ms']:.1f}", *(f"{row['parts_ms'][part]:.1f}" for part in PARTS)]
        share = f"{100 * row['outside_passes']:.1f} %"
        line = f"| {row['method']}, {row['runtime']} | {' | '.join(cells)} | {share} |"
        assert row["temperature"] == 0 or row["runtime"] == "eager" or line in sampled
        assert row["temperature"] == 1 or line in greedy
    shares = sorted(100 * row["outside_passes"] for row in PROFILE["rows"])
    assert f"{shares[0]:.1f} to {shares[-1]:.1f} % of a cycle" in re.sub(r"\s+", " ", PAGE)


def test_the_page_shows_what_passes_and_products_take() -> None:
    for one in (*PASSES["passes"], *PASSES_FLOAT32["passes"]):
        times = " | ".join(f"{one[f'{runtime}_ms']:.1f}" for runtime in ("eager", "packed", "compiled"))
        assert f"| {one['rows']} | {times} | {one['ratio_packed']:.2f} | {one['ratio_compiled']:.2f} |" in PAGE
    shown = [both for both in zip(*FEW_ROWS, strict=True) if both[0]["rows"] in (1, 4, 8, 16, 32, 64, 256)]
    assert len(shown) == 7
    for both in shown:
        cells = [f"{one['pytorch_ms']:.1f} | {one['own_ms']:.1f} | {one['ratio']:.2f}" for one in both]
        assert f"| {both[0]['rows']} | {' | '.join(cells)} |" in PAGE


def test_the_page_says_how_long_compiling_takes_and_what_memory_it_costs() -> None:
    first, second = START["first"], START["second"]
    text = re.sub(r"\s+", " ", PAGE)
    assert f"takes {int(first['compile_s'])} s at the first start" in text
    assert f"and {int(second['compile_s'])} s at a later one" in text
    assert f"memory again ({first['packed_mib']} MiB)" in text
    assert first["packed_mib"] == second["packed_mib"]
