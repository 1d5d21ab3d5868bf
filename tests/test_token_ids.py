"""Every method emits, drafts and accepts what the record says, step by step."""

from __future__ import annotations

import json
from typing import Any

import pytest

import slipstream
import token_ids


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(token_ids.RECORD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain() -> slipstream.Model:
    return token_ids.load_plain()


def test_the_record_covers_all_that_is_run(record: dict[str, Any], plain: slipstream.Model) -> None:
    assert record["prompts"] == token_ids.prompts_of(plain)
    assert list(record["steps"]) == list(token_ids.CONFIGURATIONS)


@pytest.mark.parametrize("configuration", token_ids.CONFIGURATIONS)
def test_steps_are_those_of_the_record(configuration: str, record: dict[str, Any], plain: slipstream.Model) -> None:
    found = token_ids.steps_of(plain, configuration, record["prompts"])
    expected = record["steps"][configuration]
    assert list(found) == list(expected)
    for generation, steps in found.items():
        assert steps == expected[generation], generation


@pytest.mark.parametrize("configuration", token_ids.CONFIGURATIONS)
def test_steps_in_fixed_sizes_are_the_same(configuration: str, record: dict[str, Any], plain: slipstream.Model) -> None:
    """Of the samplings that come first in the record, since an exit rule learns from one generation to the next."""
    samplings = ["greedy", "coupled"]
    found = token_ids.steps_of(plain, configuration, record["prompts"], samplings, sizes="fixed")
    assert len(found) == len(samplings) * len(record["prompts"])
    for generation, steps in found.items():
        assert steps == record["steps"][configuration][generation], generation
