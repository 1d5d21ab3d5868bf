"""Captured passes, replayed on a CPU as a GPU would: the tokens of eager ones, from the same memory again and again."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any

import pytest
import torch

import slipstream
import slipstream.drafting.shape
import slipstream.model as door
from families import FAMILIES, build, prompt_ids
from slipstream.errors import InputError
from slipstream.runtime.captured import CapturedPasses
from slipstream.runtime.executor import check_runtime, make_executor, suited_executor
from slipstream.runtime.recording import CpuTape

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer-skip": {"width": 3, "depth": 3, "total": 6},
    "eagle2": {"width": 4, "depth": 3, "total": 12},
    "eagle": {"total": "all"},
    "medusa": {"total": 12},
    "hydra": {"total": 12},
    "draft-model": {"width": 3, "depth": 3, "total": 6},
    "prompt-lookup": {"length": 3, "branches": 1},
    "lookahead": {"window": 3, "level": 3, "guesses": 3},
}
STAGED = {"layer-skip", "eagle2", "eagle", "medusa", "hydra", "draft-model"}
"""Methods whose whole draft is one stage."""
PROMPT = "Write a list of ten animals."


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> CapturedPasses:
    """What models that are loaded in the test run by."""
    made = CapturedPasses(CpuTape())
    monkeypatch.setattr(door, "suited_executor", lambda *asked: made)
    return made


def eager(model: Any, method: str, **options: Any) -> slipstream.Model:
    """A model whose passes run eagerly, in the same test."""
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr(door, "suited_executor", suited_executor)
        return slipstream.load(model, method, **options)


@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_tokens_are_those_of_eager_passes(method: str, executor: CapturedPasses) -> None:
    """In float64, greedy and sampled; later texts replay what was recorded for the first ones."""
    options = CONFIGURATIONS[method]
    expected = eager("tiny", method, dtype="fp64", **options)
    model = slipstream.load("tiny", method, dtype="fp64", **options)
    for temperature in (0.0, 1.0):
        for prompt, length in ((PROMPT, 20), ("Tell me what the sun is, please.", 20), (PROMPT, 32)):
            given = {"max_new_tokens": length, "temperature": temperature, "seed": 3}
            recorded, replayed = executor.num_recorded, executor.num_replayed
            answer = model.generate(prompt, **given)
            assert answer.token_ids == expected.generate(prompt, **given).token_ids
            cycles = answer.stats.num_cycles
        assert executor.num_replayed - replayed >= 0.6 * cycles * (2 if method in STAGED else 1)
        assert executor.num_recorded - recorded <= 8


def test_a_cycle_is_two_replays_and_those_of_the_head(executor: CapturedPasses) -> None:
    """Draft, verification, and the pass of the head over what was committed."""
    model = slipstream.load("tiny", "eagle2", width=4, depth=3, total=12)
    for _ in range(4):
        before = executor.num_replayed, executor.num_recorded
        answer = model.generate(PROMPT, max_new_tokens=40, temperature=0)
    assert executor.num_recorded == before[1]
    assert executor.num_replayed - before[0] <= 3 * answer.stats.num_cycles + 1
    assert executor.num_replayed - before[0] >= 2.5 * answer.stats.num_cycles


def test_log_probabilities_penalties_and_the_published_rules_are_the_same(executor: CapturedPasses) -> None:
    """What hangs on the text so far, or on a generator of the host, is done outside what is recorded."""
    tree = CONFIGURATIONS["eagle2"]
    for verification, given in (
        ("coupled", {"logprobs": 3, "temperature": 0.0}),
        ("coupled", {"repetition_penalty": 1.3, "temperature": 0.8, "top_k": 40}),
        ("coupled", {"top_p": 0.9, "temperature": 0.7}),
        ("rejection", {"temperature": 1.0}),
    ):
        models = [
            load("tiny", "eagle2", dtype="fp64", verification=verification, **tree) for load in (eager, slipstream.load)
        ]
        for _ in range(2):
            answers = [model.generate(PROMPT, max_new_tokens=24, seed=5, **given) for model in models]
            assert answers[0].token_ids == answers[1].token_ids
            if "logprobs" in given:
                pairs = [[one.logprob for one in answer.logprobs] for answer in answers]
                assert torch.allclose(*map(torch.tensor, pairs), atol=1e-9)
    assert executor.num_replayed > 20


@pytest.mark.parametrize("family", ["gemma3", "mistral", "gpt2", "llama4"])
def test_families_of_other_masks_and_positions(family: str, executor: CapturedPasses) -> None:
    """Windows, a dict of masks, learned positions; and one that reads the length of the text, which is left eager."""
    model = FAMILIES[family]()
    expected = eager(model, "plain").generate(prompt_ids(9), max_new_tokens=20).token_ids
    for method, options in (("prompt-lookup", {}), ("layer-skip", {"width": 3, "depth": 3, "total": 6})):
        loaded = slipstream.load(model, method, **options)
        for _ in range(2):
            assert loaded.generate(prompt_ids(9), max_new_tokens=20).token_ids == expected
    assert (executor.num_replayed == 0) is (family == "llama4")


def test_memory_is_handed_on_with_what_was_recorded_there(executor: CapturedPasses) -> None:
    model = slipstream.load("tiny", "eagle2", keep=0, **CONFIGURATIONS["eagle2"])
    for _ in range(4):
        model.generate(PROMPT, max_new_tokens=30, temperature=0)
    recorded, replayed = executor.num_recorded, executor.num_replayed
    model.engine.forget()  # the caches are nobody's now
    gc.collect()
    model.generate(PROMPT, max_new_tokens=30, temperature=0)
    assert executor.num_recorded == recorded
    assert executor.num_replayed > replayed
    model.forget()
    gc.collect()
    assert len(executor._graphs) == 0
    model.generate(PROMPT, max_new_tokens=30, temperature=0)
    assert executor.num_recorded > recorded


def test_a_cache_that_grows_is_recorded_anew(executor: CapturedPasses) -> None:
    """Past the first bucket of the context, and back to a short text in the larger memory."""
    target = build("llama", max_position_embeddings=1024)
    expected = eager(target, "prompt-lookup", length=3, branches=1)
    model = slipstream.load(target, "prompt-lookup", length=3, branches=1)
    for length in (290, 30, 290):
        given = {"max_new_tokens": length, "temperature": 1.0, "seed": 2}
        answer = model.generate(prompt_ids(9), **given)
        assert len(answer.token_ids) == length
        assert answer.token_ids == expected.generate(prompt_ids(9), **given).token_ids
    assert executor.num_replayed > 200


def test_other_weights_are_read_and_not_those_that_were_recorded(executor: CapturedPasses) -> None:
    """Weights that were changed in place lie where they lay; those that were replaced void what was recorded."""
    target = build("llama")
    model = slipstream.load(target, "layer-skip", width=3, depth=3, total=6)
    first = [model.generate(prompt_ids(9), max_new_tokens=20).token_ids for _ in range(3)]
    changes = [
        lambda weight: weight.data.mul_(-1.0),
        lambda weight: setattr(target.model.layers[1].mlp.down_proj, "weight", torch.nn.Parameter(weight * 3.0)),
    ]
    for change in changes:
        with torch.no_grad():
            change(target.model.layers[1].mlp.down_proj.weight)
        model.engine.forget()  # the kept text is of the old weights
        expected = eager(target, "plain").generate(prompt_ids(9), max_new_tokens=20).token_ids
        assert expected not in first
        assert model.generate(prompt_ids(9), max_new_tokens=20).token_ids == expected
        first.append(expected)


def test_threads_share_what_is_recorded_and_get_their_own_tokens(executor: CapturedPasses) -> None:
    options = CONFIGURATIONS["medusa"]  # its drafts are recorded without a cache, for all texts
    expected = eager("tiny", "medusa", dtype="fp64", **options)
    model = slipstream.load("tiny", "medusa", dtype="fp64", keep=2, **options)
    prompts = [PROMPT, "What is photosynthesis?", "Tell me about Rome."]
    right = [expected.generate(one, max_new_tokens=24, temperature=0).token_ids for one in prompts]
    found: dict[int, list[list[int]]] = {}

    def ask(number: int) -> None:
        found[number] = [model.generate(prompts[number], max_new_tokens=24, temperature=0).token_ids for _ in range(2)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(3)] == [[one, one] for one in right]
    assert executor.num_replayed > 0


def test_what_cannot_be_recorded_runs_eagerly_and_is_said_once(
    executor: CapturedPasses, caplog: pytest.LogCaptureFixture
) -> None:
    target = build("llama")
    layer = target.model.layers[0]
    own = layer.forward
    layer.forward = lambda hidden, *args, **kwargs: own(hidden * float(hidden.max().item() > 0), *args, **kwargs)
    with caplog.at_level(logging.WARNING):
        model = slipstream.load(target, "plain")
        answers = [model.generate(prompt_ids(9), max_new_tokens=12).token_ids for _ in range(3)]
    assert answers == [eager(target, "plain").generate(prompt_ids(9), max_new_tokens=12).token_ids] * 3
    said = [one.message for one in caplog.records if "captured" in one.message]
    assert said == [
        "a pass cannot be captured and goes on to run eagerly: aten.item.default reads a tensor on the host"
    ]


def test_cycles_that_record_say_nothing_of_costs(executor: CapturedPasses, monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = slipstream.load("tiny", "eagle2", width=4, depth=3, total=12), []
    monkeypatch.setattr(
        slipstream.drafting.shape.ShapeInUse, "record_times", lambda self, seconds: told.append(seconds)
    )
    for _ in range(4):
        told.clear()
        answer = model.generate(PROMPT, max_new_tokens=24, temperature=0)
        counts = sum(not one for one in told), len(told)
    assert counts == (0, answer.stats.num_cycles), "all is recorded by now"
    model.forget()
    told.clear()
    model.generate(PROMPT, max_new_tokens=24, temperature=0)
    assert not told[0], "the first cycle ran eagerly, as none will later"
    assert not told[1], "the second was recorded"
    assert any(told)


def test_costs_are_measured_of_what_is_recorded(executor: CapturedPasses) -> None:
    """Sizes by cost settle first; then a text is answered as ever."""
    model = slipstream.load("tiny", "eagle2", dtype="fp64")
    expected = eager("tiny", "plain", dtype="fp64").generate(PROMPT, max_new_tokens=24, temperature=0).token_ids
    assert model.generate(PROMPT, max_new_tokens=24, temperature=0).token_ids == expected
    assert executor.num_recorded > 0


def test_captured_passes_are_for_cuda() -> None:
    with pytest.raises(InputError, match="runtime='captured' is for CUDA, and the model is on cpu; use 'compiled' or"):
        slipstream.load("tiny", "plain", runtime="captured")
    check_runtime("captured", torch.device("cuda:1"))
    with pytest.raises(InputError, match="runtime='compiled' is for a CPU, and the model is on cuda:1; use 'captured'"):
        check_runtime("compiled", torch.device("cuda:1"))
    assert make_executor("fixed", "captured").name == "captured"
