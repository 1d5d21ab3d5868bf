"""What the docs say of compiled passes in use is what their record says."""

from __future__ import annotations

import json

import pytest

from shipped_records import RECORDS

COLUMNS = ("plain", "auto", "eagle2", "prompt-lookup", "hf-compiled", "hf-prompt-lookup")


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_table_of_compiled_passes_is_the_records(temperature: int) -> None:
    record = json.loads((RECORDS / "bench-compiled-smollm2-bf16.json").read_text(encoding="utf-8"))
    assert record["run"]["runtime"] == "compiled"
    assert record["complete"]
    rows = [one for one in record["rows"] if one["task"] == "all" and one["temperature"] == temperature]
    ratios = {one["entrant"]: one["ratio_to_transformers"] for one in rows}
    cells = " | ".join(f"{ratios[name]:.2f}" for name in COLUMNS)
    said = " ".join((RECORDS.parents[1] / "README.md").read_text(encoding="utf-8").split())
    plain, auto = f"{ratios['plain']:.2f}", f"{ratios['auto']:.2f}"
    expected = {
        0: f"ran at {plain} and `auto` at {auto} of transformers' own at T = 0",
        1: f"{plain} and {auto} at T = 1",
    }
    assert expected[temperature] in said
    page = (RECORDS.parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert f"| T = {temperature} | {cells} |" in page
    assert f"| {' | '.join(f'`{name}`' for name in COLUMNS)} |" in page
