"""What the benchmark of steps ahead makes of answers: tau per head and tree, and paired differences."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from slipstream.bench.comparison import Answer
from slipstream.output import Output, Stats
from slipstream.prompts import Prompt

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the benchmark scripts are not in this distribution")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import steps_ahead

        yield steps_ahead
        for name in ("steps_ahead", "draft_trees", "records", "tallies"):
            sys.modules.pop(name, None)


def answer(task: str, number: int, method: str, temperature: float, num_tokens: int, num_cycles: int) -> Answer:
    stats = Stats(num_tokens=num_tokens, num_cycles=num_cycles)
    output = Output(text="", token_ids=[], prompt_ids=[], finish_reason="length", seed=None, stats=stats)
    return Answer(
        prompt=Prompt(id=str(number), kind=task, turns=("?",)),
        turn=0,
        method=method,
        temperature=temperature,
        output=output,
        verdict="identical",
        first_difference=None,
    )


def answers(script: ModuleType, cycles: dict[int, list[int]]) -> list[Answer]:
    """Twelve tokens for every question; cycles by steps ahead, then question."""
    return [
        answer("gsm8k" if number else "nq", number, f"{tree} {ahead}", temperature, 12, num)
        for temperature in script.TEMPERATURES
        for tree in script.TREES
        for ahead, each in cycles.items()
        for number, num in enumerate(each)
    ]


def test_tau_is_tokens_over_cycles_of_all_questions(script):
    found = script.rows(answers(script, {1: [12, 4, 8], 3: [6, 6, 3]}), [1, 3])
    assert len(found) == 12
    one, three = found[:2]
    assert (one["steps_ahead"], three["steps_ahead"]) == (1, 3)
    assert one["tau"] == {"nq": 1.0, "gsm8k": 2.0, "all": 1.5}
    assert three["tau"] == {"nq": 2.0, "gsm8k": round(24 / 9, 4), "all": 2.4}
    assert one["verdicts"] == {"identical": 3, "rounding": 0, "fault": 0}


def test_differences_are_paired_by_question(script):
    """Questions differ much, heads by the same half cycle each: the interval is narrow and on one side of zero."""
    cycles = [4 + 2 * number for number in range(12)]
    found = script.differences(
        answers(script, {1: [2 * one for one in cycles], 3: [2 * one - 1 for one in cycles]}), [1, 3], random.Random(0)
    )
    tokens, fewer = 12 * 12, 2 * sum(cycles) - 12
    assert found[0]["difference"] == pytest.approx(tokens / fewer - tokens / (fewer + 12), abs=1e-4)
    low, high = found[0]["interval"]
    assert 0 < low < found[0]["difference"] < high
    same = script.differences(answers(script, {1: cycles, 3: cycles}), [1, 3], random.Random(0))
    assert all(one["difference"] == 0 and one["interval"] == [0, 0] for one in same)


def test_heads_are_given_by_steps_and_folder(script):
    assert script.head_argument("3=some/where") == (3, Path("some/where"))
    assert script.head_argument("1") == (1, None)
    for wrong in ("0", "x=y", "3=", "=y"):
        with pytest.raises(argparse.ArgumentTypeError, match=wrong):
            script.head_argument(wrong)
