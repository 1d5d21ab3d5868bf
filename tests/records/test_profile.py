"""What the docs say of where a cycle's time goes, and of compiling, is what the records say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shipped_records import RECORDS

PROFILE = json.loads((RECORDS / "profile-smollm2-bf16.json").read_text(encoding="utf-8"))
START = json.loads((RECORDS / "compiled-start-bf16.json").read_text(encoding="utf-8"))
PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
PARTS = ("draft_passes", "target_passes", "drafting", "choosing", "rest")


def test_the_parts_of_a_profiled_cycle_add_up_and_little_is_outside_passes() -> None:
    for row in PROFILE["rows"]:
        parts = row["parts_ms"]
        assert sum(parts.values()) == pytest.approx(row["cycle_ms"], abs=0.02)
        outside = 1 - (parts["draft_passes"] + parts["target_passes"]) / row["cycle_ms"]
        assert outside == pytest.approx(row["outside_passes"], abs=1e-3)
        assert 0 < row["outside_passes"] < 0.1


def test_the_page_shows_the_profile() -> None:
    for row in PROFILE["rows"]:
        cells = [f"{row['cycle_ms']:.1f}", *(f"{row['parts_ms'][part]:.1f}" for part in PARTS)]
        share = f"{100 * row['outside_passes']:.1f} %"
        assert f"| {row['method']}, {row['runtime']} | {' | '.join(cells)} | {share} |" in PAGE
    shares = sorted(100 * row["outside_passes"] for row in PROFILE["rows"])
    assert f"{shares[0]:.1f} to {shares[-1]:.1f} % of a cycle" in re.sub(r"\s+", " ", PAGE)


def test_the_page_says_how_long_compiling_takes_and_what_memory_it_costs() -> None:
    first, second = START["first"], START["second"]
    text = re.sub(r"\s+", " ", PAGE)
    assert f"takes {int(first['compile_s'])} s at the first start" in text
    assert f"and {int(second['compile_s'])} s at a later one" in text
    assert f"memory again ({first['packed_mib']} MiB)" in text
    assert first["packed_mib"] == second["packed_mib"]
