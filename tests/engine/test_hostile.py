"""Whatever a drafter proposes, and wherever a generation is cut, ids, length and finish reason are plain decoding's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from doubles import (
    CONFIGURATIONS,
    Decoded,
    Script,
    Scripted,
    always_right,
    always_wrong,
    configured,
    decode,
    exactly_the_budget,
    far_too_deep,
    nothing,
    proposing,
    random_tree,
)
from families import CONTEXT, build, prompt_ids
from methods.learned import LEARNED, learned, save_artefacts
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.drafting.base import Drafter
from slipstream.engine.engine import Engine
from slipstream.methods.plain import PlainDrafter
from slipstream.methods.registry import METHODS
from slipstream.target.target import Target

PROMPT = prompt_ids(20)
SEED = 19  # of the sampled answers: one whose first tokens all differ, so that a token marks its place
HOSTILE: dict[str, Script] = {
    "always-right": always_right,
    "always-wrong": always_wrong,
    "too-deep": far_too_deep,
    "exactly-the-budget": exactly_the_budget,
    "empty": nothing,
    "random-tree": random_tree,
}
EVERY = {**CONFIGURATIONS, **LEARNED}


@dataclass
class StopAt:
    """A stopper that ends the text at a given run of tokens, as a stop string does."""

    tokens: Sequence[int]
    seen: list[int] = field(default_factory=list)

    def append_token(self, token: int) -> bool:
        self.seen.append(token)
        return self.seen[-len(self.tokens) :] == list(self.tokens)


@dataclass(frozen=True)
class Scenario:
    """A request, and how it must end. Indices count the tokens of the uncut answer."""

    finish_reason: str
    num_tokens: int
    prompt: tuple[int, ...] = tuple(PROMPT)
    max_new_tokens: int = 14
    eos_at: tuple[int, ...] = ()
    stop_at: tuple[int, int] | None = None
    prefill_chunk: int = 512


SCENARIOS: dict[str, Scenario] = {
    "budget": Scenario("length", 14),
    "budget-of-one": Scenario("length", 1, max_new_tokens=1),
    "budget-of-two": Scenario("length", 2, max_new_tokens=2),
    "eos": Scenario("eos", 8, eos_at=(7,)),
    "first-of-several-eos": Scenario("eos", 6, eos_at=(11, 5, 8)),
    "eos-at-once": Scenario("eos", 1, eos_at=(0,)),
    "eos-as-last-of-the-budget": Scenario("eos", 8, eos_at=(7,), max_new_tokens=8),
    "stop-string": Scenario("stop", 7, stop_at=(4, 7)),
    "stop-string-before-eos": Scenario("stop", 6, stop_at=(3, 6), eos_at=(8,)),
    "context": Scenario("context", 6, prompt=tuple(prompt_ids(CONTEXT - 6)), max_new_tokens=50),
    "context-leaves-one": Scenario("context", 1, prompt=tuple(prompt_ids(CONTEXT - 1)), max_new_tokens=50),
    "budget-meets-context": Scenario("length", 6, prompt=tuple(prompt_ids(CONTEXT - 6)), max_new_tokens=6),
    "one-token-prompt": Scenario("length", 14, prompt=(9,)),
    "two-token-prompt": Scenario("length", 14, prompt=(9, 33)),
    "prefill-in-chunks": Scenario("length", 14, prompt=tuple(prompt_ids(60)), prefill_chunk=7),
    "prefill-token-by-token": Scenario("length", 5, prompt=tuple(prompt_ids(11)), max_new_tokens=5, prefill_chunk=1),
}


@pytest.fixture(scope="module")
def target(family_model):
    return Target(family_model("llama"))


def drafters_of(target: Target, folder: Path) -> Callable[[str], Drafter]:
    """The drafters of all configurations for a target, each made once; `folder` is for their artefacts."""
    save_artefacts(target, folder)
    return functools.cache(lambda name: learned(name, target, folder) if name in LEARNED else configured(name, target))


@pytest.fixture(scope="module")
def drafter(target, tmp_path_factory) -> Callable[[str], Drafter]:
    return drafters_of(target, tmp_path_factory.mktemp("artefacts"))


@pytest.fixture(scope="module")
def uncut(family_model):
    """The answer to a prompt with nothing to end it but the context."""
    known: dict[tuple[tuple[int, ...], float], list[int]] = {}

    def answer(prompt: tuple[int, ...], temperature: float) -> list[int]:
        if (prompt, temperature) not in known:
            settings = {"max_new_tokens": 24, "temperature": temperature, "seed": SEED, "context_length": CONTEXT}
            known[prompt, temperature] = oracle_generate(family_model("llama"), prompt, **settings)
            assert len(prompt) != len(PROMPT) or len(set(known[prompt, temperature][:9])) == 9, "no place for an EOS"
        return known[prompt, temperature]

    return answer


def run(engine: Engine, scenario: Scenario, answer: list[int], temperature: float) -> Decoded:
    return decode(
        engine,
        scenario.prompt,
        max_new_tokens=scenario.max_new_tokens,
        eos_token_ids=[answer[index] for index in scenario.eos_at],
        stopper=None if scenario.stop_at is None else StopAt(answer[slice(*scenario.stop_at)]),
        temperature=temperature,
        seed=SEED,
    )


@in_both_sizes("temperature", [0.0, 1.0])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("script", [*HOSTILE, "proposing-eos"])
def test_cuts_are_exact_whatever_is_drafted(script, scenario, temperature, target, uncut):
    case = SCENARIOS[scenario]
    answer = uncut(case.prompt, temperature)
    played = HOSTILE.get(script) or proposing(answer[case.eos_at[0]] if case.eos_at else 2)
    engine = Engine(target, Scripted(played, answer), prefill_chunk=case.prefill_chunk)
    result = run(engine, case, answer, temperature)
    assert result.ids == answer[: case.num_tokens]
    assert result.finish_reason == case.finish_reason
    check_accounts(result)
    plain = run(Engine(target, PlainDrafter()), case, answer, temperature)
    assert (plain.ids, plain.finish_reason) == (result.ids, result.finish_reason)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@in_both_sizes("scenario", SCENARIOS, fixed=["eos", "context", "prefill-in-chunks"])
@pytest.mark.parametrize("configuration", EVERY)
def test_cuts_are_exact_with_every_method(configuration, scenario, temperature, target, drafter, uncut):
    case = SCENARIOS[scenario]
    answer = uncut(case.prompt, temperature)
    engine = Engine(target, drafter(configuration), prefill_chunk=case.prefill_chunk)
    result = run(engine, case, answer, temperature)
    assert result.ids == answer[: case.num_tokens]
    assert result.finish_reason == case.finish_reason
    check_accounts(result)


def test_every_method_is_among_them():
    assert {method for method, _ in EVERY.values()} == set(METHODS)


@pytest.mark.parametrize("configuration", LEARNED)
def test_learned_drafts_are_kept_now_and_then(configuration, target, drafter):
    """Cuts within drafts that nobody keeps would prove little."""
    steps = decode(Engine(target, drafter(configuration)), PROMPT, max_new_tokens=40).steps
    assert {step.num_accepted > 0 for step in steps[:-1]} == {True, False}


@pytest.fixture(scope="module")
def few_words(tmp_path_factory) -> tuple[Target, Callable[[str], Drafter]]:
    """A target with fewer words than trees have children, and the drafters for it."""
    target = Target(build("llama", vocab_size=6))
    return target, drafters_of(target, tmp_path_factory.mktemp("artefacts"))


@in_both_sizes("how", [{}, {"temperature": 1.0, "seed": 4}, {"temperature": 0.8, "top_k": 2, "seed": 4}])
@pytest.mark.parametrize("configuration", EVERY)
def test_a_vocabulary_smaller_than_a_tree_is_wide_is_drafted_from(configuration, how, few_words):
    """With top_k = 2 all but two children of a node have no probability at all."""
    target, drafter = few_words
    prompt = [3, 1, 4, 1, 5, 2, 0, 3]
    settings = {"max_new_tokens": 16, **how}
    result = decode(Engine(target, drafter(configuration)), prompt, **settings)
    assert result.ids == oracle_generate(target.model, prompt, **settings)


def check_accounts(result: Decoded) -> None:
    """Every step says what it emitted, and counts nothing that it did not emit."""
    *earlier, last = result.steps
    assert all(len(step.token_ids) == step.num_accepted + 1 for step in earlier)
    assert all(step.finish_reason is None for step in earlier)
    assert len(last.token_ids) >= 1
    assert len(last.token_ids) - 1 <= last.num_accepted <= len(last.token_ids)
    assert all(step.num_accepted <= step.num_drafted for step in result.steps)


def test_always_right_drafts_are_accepted_whole(target, uncut):
    """Lossless and useless would pass the tests above."""
    answer = uncut(tuple(PROMPT), 0.0)
    result = decode(Engine(target, Scripted(always_right, answer)), PROMPT, max_new_tokens=15)
    assert [len(step.token_ids) for step in result.steps] == [5, 5, 5]


def test_always_wrong_drafts_are_never_accepted(target, uncut):
    result = decode(Engine(target, Scripted(always_wrong, uncut(tuple(PROMPT), 0.0))), PROMPT, max_new_tokens=8)
    assert [step.num_accepted for step in result.steps] == [0] * 8


def test_eos_inside_an_accepted_path_ends_the_text_there(target, uncut):
    """The path goes on behind the EOS, and all of it is what the target would say."""
    answer = uncut(tuple(PROMPT), 0.0)
    result = decode(Engine(target, Scripted(far_too_deep, answer)), PROMPT, eos_token_ids=[answer[3], answer[5]])
    first = min(answer.index(answer[3]), answer.index(answer[5]))
    assert len(result.steps) == 1
    assert result.ids == answer[: first + 1]
    assert result.finish_reason == "eos"


def test_no_pass_is_wider_than_the_budget_needs(target, uncut):
    """Nodes that no budget could emit are not worth a row of the target's pass."""
    engine = Engine(target, Scripted(far_too_deep, uncut(tuple(PROMPT), 0.0)))
    assert [step.num_drafted for step in decode(engine, PROMPT, max_new_tokens=6).steps] == [5]


@both_sizes
@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_bigcode", "gemma3", "longrope"])
@pytest.mark.parametrize("script", ["too-deep", "random-tree"])
def test_the_context_limit_holds_in_every_kind_of_position(name, script, family_model):
    """Learned positions end at the limit: a node beyond it would index past the table."""
    model, prompt = family_model(name), prompt_ids(CONTEXT - 5)
    answer = oracle_generate(model, prompt, max_new_tokens=50, context_length=CONTEXT)
    result = decode(Engine(Target(model), Scripted(HOSTILE[script], answer)), prompt, max_new_tokens=50)
    assert (result.ids, result.finish_reason) == (answer, "context")


@both_sizes
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_rows_beyond_the_context_can_be_run(name, family_model):
    """Trees of a fixed shape may reach past the limit; such rows are never emitted, but must not index past a table."""
    target = Target(family_model(name))
    cache = target.new_cache(extra_slots=8)
    tokens = torch.tensor(prompt_ids(CONTEXT - 2))
    target.forward(tokens, torch.arange(CONTEXT - 2), target.causal(CONTEXT - 2), cache)
    cache.commit(None, CONTEXT - 2)
    inside = target.forward(tokens[:2], torch.arange(CONTEXT - 2, CONTEXT), target.causal(2), cache).logits
    beyond = target.forward(tokens[:5], torch.arange(CONTEXT - 2, CONTEXT + 3), target.causal(5), cache).logits
    torch.testing.assert_close(beyond[:, :2], inside, rtol=0, atol=1e-9)
