"""What the README and the docs say of packed and compiled passes in use is what their records say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shipped_records import RECORDS

COLUMNS = (
    "plain",
    "auto",
    "eagle2",
    "prompt-lookup",
    "hf-compiled",
    "hf-prompt-lookup",
    "llama-cpp",
    "openvino",
    "openvino-prompt-lookup",
    "llama-cpp-q4",
)
README = " ".join((RECORDS.parents[1] / "README.md").read_text(encoding="utf-8").split())


def rows(name: str, runtime: str) -> dict[tuple[str, float], dict[str, Any]]:
    """Those over all tasks, by entrant and temperature."""
    record = json.loads((RECORDS / name).read_text(encoding="utf-8"))
    assert record["run"]["runtime"] == runtime
    assert record["complete"]
    return {(one["entrant"], one["temperature"]): one for one in record["rows"] if one["task"] == "all"}


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_table_of_compiled_passes_is_the_records(temperature: int) -> None:
    found = rows("bench-compiled-smollm2-bf16.json", "compiled")
    page = (RECORDS.parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
    here = [found[name, temperature] for name in COLUMNS]
    ratios = " | ".join(f"{one['ratio_to_transformers']:.2f}" for one in here)
    speeds = " | ".join(f"{one['tokens_per_second']:.1f}" for one in here)
    assert f"| T = {temperature} | {ratios} |" in page
    assert f"| tokens/s, T = {temperature} | {speeds} |" in page
    assert f"| {' | '.join(f'`{name}`' for name in COLUMNS)} |" in page


def test_the_readme_says_how_fast_packed_and_compiled_passes_were() -> None:
    packed = rows("bench-smollm2-bf16.json", "packed")
    compiled = rows("bench-compiled-smollm2-bf16.json", "compiled")

    def of(found: dict[tuple[str, float], dict[str, Any]], name: str) -> list[str]:
        return [f"{found[name, heat]['ratio_to_transformers']:.2f}" for heat in (0, 1)]

    auto, plain = of(packed, "auto"), of(packed, "plain")
    assert f"`auto` ran at {auto[0]} of `transformers`' own plain decoding at T = 0 and at {auto[1]} at T = 1" in README
    assert f"our plain decoding at {plain[0]} and {plain[1]}" in README
    for name, said in (
        ("auto", "`auto` ran at {} and {}"),
        ("plain", "plain at {} and {}"),
        ("llama-cpp", "weights: {} and {})"),
        ("openvino-prompt-lookup", "prompt lookup ({} and {})"),
    ):
        assert said.format(*of(compiled, name)) in README


def test_the_readme_counts_the_answers_that_are_plain_decodings() -> None:
    found = rows("bench-smollm2-bf16.json", "packed")
    ours = [one for (name, _), one in found.items() if not name.startswith("hf-") and name != "plain"]
    same, total = sum(one["verdicts"]["identical"] for one in ours), sum(one["num_answers"] for one in ours)
    assert f"In bfloat16 {same} of {total} answers of methods are plain decoding's" in README
