"""How often a cycle waits for the device: once, for the walk; and where the design says so, for each token of a chain.

On a CPU a read costs nothing, so it is counted here, on the code that other devices run.
"""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch

import slipstream
import token_ids
from slipstream.core import largest

READS = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero", "numpy", "cpu")
CHAINS = ("layer-skip chain", "draft-model chain")
"""Their drafts end once a token is unsure, which the host has to know."""
SAMPLINGS = ("greedy", "coupled")


@pytest.fixture(scope="module")
def plain() -> slipstream.Model:
    return token_ids.load_plain()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of our code that have read a tensor, one entry a read."""
    found: list[str] = []
    monkeypatch.setattr(largest, "_WIDE", 2**31)  # cutting rows is for a CPU
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, _counted(name, getattr(torch.Tensor, name), found))
    return found


def _counted(name: str, right: Any, found: list[str]) -> Any:
    def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        last = next(one for one in reversed(traceback.extract_stack()) if "/slipstream/" in one.filename)
        found.append(f"{name} in {last.name}")
        return right(self, *args, **kwargs)

    return read


def reads_by_step(model: slipstream.Model, prompt: list[int], reads: list[str], **settings: Any) -> list[list[str]]:
    """The reads of every cycle but the first, in which the prompt is part and costs may be measured."""
    found = []
    for _ in model.stream(prompt, max_new_tokens=24, eos_token_id=(), **settings):
        found.append(reads[:])
        reads.clear()
    return found[1:]


@pytest.mark.parametrize("configuration", [name for name in token_ids.CONFIGURATIONS if name not in CHAINS])
def test_a_cycle_reads_the_device_once(configuration, plain, reads):
    method, options = token_ids.CONFIGURATIONS[configuration]
    model = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer, **options)
    prompt = plain.tokenizer.encode(token_ids.PROMPTS["repetition"])
    for sampling in SAMPLINGS:
        steps = reads_by_step(model, prompt, reads, **token_ids.SAMPLINGS[sampling])
        assert len(steps) > 2
        for step in steps:
            assert step == ["tolist in read_walk"], sampling


@pytest.mark.parametrize("configuration", CHAINS)
def test_a_chain_that_may_end_early_reads_each_token_too(configuration, plain, reads):
    method, options = token_ids.CONFIGURATIONS[configuration]
    model = slipstream.load(plain.target.model, method, tokenizer=plain.tokenizer, **options)
    prompt = plain.tokenizer.encode(token_ids.PROMPTS["story"])
    for step in reads_by_step(model, prompt, reads, temperature=0.0):
        assert step.count("tolist in read_walk") == 1
        assert set(step) <= {"tolist in read_walk", "item in _draw"}


def test_log_probabilities_are_read_where_they_are_asked_for(plain, reads):
    steps = reads_by_step(plain, plain.tokenizer.encode("Once"), reads, temperature=0.0, logprobs=2)
    for step in steps:
        assert step[0] == "tolist in read_walk"
        assert set(step[1:]) == {"tolist in token_logprobs"}
