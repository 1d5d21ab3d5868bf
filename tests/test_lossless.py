"""Sampling is plain sampling token by token, state never leaks from one generation into another, and the checks bite.

The last point is tested by planting the classic faults of tree verification: each must break the identity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from doubles import CONFIGURATIONS, Scripted, always_right, configured, decode, random_tree, request, right_behind_wrong
from families import FAMILIES, prompt_ids
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.rules import CoupledRule
from slipstream.core.tree import DraftTree
from slipstream.core.verify import walk
from slipstream.drafting.base import Drafter
from slipstream.engine.engine import Engine
from slipstream.errors import UnsupportedTargetError
from slipstream.methods.plain import PlainDrafter
from slipstream.target.arguments import cache_argument
from slipstream.target.cache import KVCache
from slipstream.target.features import Features
from slipstream.target.probe import probe
from slipstream.target.target import Target

PROMPT = prompt_ids(7, seed=4) * 3
NUM_TOKENS = 14
WARPERS: dict[str, dict[str, Any]] = {
    "cold": {"temperature": 0.3},
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 1.5},
    "top-k": {"temperature": 1.0, "top_k": 5},
    "top-p": {"temperature": 1.5, "top_p": 0.8},
    "min-p": {"temperature": 1.0, "min_p": 0.1},
    "all": {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
}


@pytest.fixture(scope="module")
def model(family_model):
    return family_model("llama")


@pytest.fixture(scope="module")
def target(model):
    return Target(model)


def drafter_for(configuration: str, target: Target, truth: list[int]) -> Drafter:
    if configuration == "random-tree":
        return Scripted(random_tree, truth)
    return configured(configuration, target)


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 11])
@in_both_sizes("warping", WARPERS)
@pytest.mark.parametrize("configuration", [*CONFIGURATIONS, "random-tree"])
def test_sampled_text_is_that_of_plain_sampling(configuration, warping, seed, target, model):
    settings = {**WARPERS[warping], "seed": seed, "max_new_tokens": NUM_TOKENS}
    expected = oracle_generate(model, PROMPT, **settings)
    assert decode(Engine(target, drafter_for(configuration, target, expected)), PROMPT, **settings).ids == expected


def test_streams_of_one_seed_are_different_samples(target, model):
    texts = []
    for stream in range(3):
        settings = {"temperature": 1.0, "seed": 7, "stream": stream, "max_new_tokens": NUM_TOKENS}
        texts.append(oracle_generate(model, PROMPT, **settings))
        assert decode(Engine(target, Scripted(random_tree, texts[-1])), PROMPT, **settings).ids == texts[-1]
    assert len({tuple(text) for text in texts}) == 3


@both_sizes
@pytest.mark.parametrize("configuration", [*CONFIGURATIONS, "random-tree"])
def test_repetition_penalty_follows_each_path_of_the_tree(configuration, target, model):
    settings = {"temperature": 0.8, "seed": 3, "max_new_tokens": NUM_TOKENS, "repetition_penalty": 1.6}
    expected = oracle_generate(model, PROMPT, **settings)
    assert expected != oracle_generate(model, PROMPT, **{**settings, "repetition_penalty": 1.0})
    assert decode(Engine(target, drafter_for(configuration, target, expected)), PROMPT, **settings).ids == expected


# -- state ---------------------------------------------------------------------------------------------------------


@both_sizes
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_generations_in_turn_equal_each_alone(configuration, target):
    requests = [
        (PROMPT, {"temperature": 1.0, "seed": 1}),
        (prompt_ids(30, seed=9), {"max_new_tokens": 5}),
        (prompt_ids(3, seed=2), {"temperature": 0.7, "seed": 2}),
        (PROMPT, {"temperature": 1.0, "seed": 1}),
    ]
    alone = [decode(Engine(target, drafter_for(configuration, target, [])), ids, **how).ids for ids, how in requests]
    shared = Engine(target, drafter_for(configuration, target, []))
    assert [decode(shared, ids, **how).ids for ids, how in requests] == alone


@both_sizes
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_generations_side_by_side_equal_each_alone(configuration, target, model):
    prompts = [PROMPT, prompt_ids(26, seed=9)]
    settings = {"temperature": 1.0, "seed": 6, "max_new_tokens": NUM_TOKENS}
    engine = Engine(target, drafter_for(configuration, target, []))
    streams = [engine.generate(request(prompt, **settings)) for prompt in prompts]
    texts: list[list[int]] = [[], []]
    running = {0, 1}
    while running:
        for index in sorted(running):
            step = next(streams[index], None)
            if step is None:
                running.remove(index)
            else:
                texts[index] += step.token_ids
    assert texts == [oracle_generate(model, prompt, **settings) for prompt in prompts]


@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_interrupting_a_stream_leaves_the_model_as_it_was(configuration, num_steps, model, target):
    ids = torch.tensor([PROMPT])
    logits, attributes = model(ids).logits, _own_attributes(model)
    engine = Engine(target, drafter_for(configuration, target, []))
    whole = decode(engine, PROMPT, max_new_tokens=8).ids
    stream = engine.generate(request(PROMPT, max_new_tokens=8, temperature=1.0, seed=4))
    for _ in range(num_steps):
        next(stream)
    assert torch.equal(model(ids).logits, logits), "the model is not plain between two steps"
    stream.close()
    assert torch.equal(model(ids).logits, logits)
    assert _own_attributes(model) == attributes, "something was left hanging on the model"
    assert decode(engine, PROMPT, max_new_tokens=8).ids == whole


def test_a_failing_drafter_leaves_the_engine_usable(target, model):
    def fail(run, ahead):
        if run.length > len(PROMPT):
            raise RuntimeError("drafter failed")
        return always_right(run, ahead)

    expected = oracle_generate(model, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter = Scripted(fail, expected)
    engine = Engine(target, drafter)
    with pytest.raises(RuntimeError, match="drafter failed"):
        decode(engine, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter.script = random_tree
    assert decode(engine, PROMPT, max_new_tokens=NUM_TOKENS).ids == expected


def _own_attributes(model: torch.nn.Module) -> dict[str, Any]:
    """What a temporary change could leave behind: replaced methods and hooks, module by module."""
    return {
        name: (sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


@both_sizes
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "deepseek_v3", "falcon-gqa", "llama4"])
def test_cache_holds_what_a_fresh_prefill_would_hold(name, family_model):
    """After every commit the rows are those of the text alone: nothing of rejected nodes, nothing out of place."""
    model = family_model(name)
    checked = []

    def check_then_draw(run, ahead):
        fresh = DynamicCache()  # without a config it keeps windowed layers whole
        model(torch.tensor([run.tokens[:-1]]), **{cache_argument(model.forward): fresh})
        for mine, theirs in zip(run.cache.layers, fresh.layers, strict=True):
            torch.testing.assert_close(mine.keys[:, :, : run.length], theirs.keys, rtol=0, atol=1e-9)
            torch.testing.assert_close(mine.values[:, :, : run.length], theirs.values, rtol=0, atol=1e-9)
        assert run.cache.positions[0, : run.length].tolist() == list(range(run.length))
        checked.append(run.length)
        return random_tree(run, ahead)

    expected = oracle_generate(model, PROMPT, max_new_tokens=NUM_TOKENS)
    result = decode(Engine(Target(model), Scripted(check_then_draw, expected)), PROMPT, max_new_tokens=NUM_TOKENS)
    assert result.ids == expected
    assert result.num_accepted > 0
    assert len(checked) >= 4


@both_sizes
def test_dynamic_rope_does_not_remember_an_earlier_generation(family_model):
    """Transformers' module keeps the base of the longest pass it has seen until a short pass resets it."""
    prompts = [prompt_ids(45, seed=1), prompt_ids(36, seed=2)]  # both beyond the original length, the longer one first
    alone = [decode(Engine(Target(FAMILIES["dynamic-rope"]()), PlainDrafter()), prompt).ids for prompt in prompts]
    shared = Engine(Target(family_model("dynamic-rope")), PlainDrafter())
    assert [decode(shared, prompt).ids for prompt in prompts] == alone
    streams = [shared.generate(request(prompt)) for prompt in prompts]
    together = [(*one.token_ids, *other.token_ids) for one, other in zip(*streams, strict=True)]
    assert together == list(zip(*alone, strict=True))


@both_sizes
@pytest.mark.parametrize("wanted", [Features(last_hidden=True, layers=(1,)), Features(layers=(1, 0, 1))])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "granite", "mixtral"])
def test_a_drafter_sees_every_committed_token_once_with_its_features(name, wanted, family_model):
    model = family_model(name)
    expected = oracle_generate(model, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter = Scripted(random_tree, expected)
    drafter.features = wanted
    decode(Engine(Target(model), drafter, prefill_chunk=8), PROMPT, max_new_tokens=NUM_TOKENS)
    committed = [*PROMPT, *expected[:-1]]
    assert [token for observed in drafter.observed for token in observed.tokens] == committed
    states = model(torch.tensor([committed]), use_cache=False, output_hidden_states=True).hidden_states
    seen = torch.cat([observed.features for observed in drafter.observed])
    in_order = [*([states[-1]] if wanted.last_hidden else []), *(states[layer] for layer in wanted.layers)]
    torch.testing.assert_close(seen, torch.cat(in_order, dim=-1)[0], rtol=0, atol=1e-9)


@both_sizes
@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3"])
def test_growing_the_cache_keeps_what_it_holds(name, family_model, monkeypatch):
    monkeypatch.setattr("slipstream.target.cache._FIRST_CAPACITY", 3)
    model = family_model(name)
    expected = oracle_generate(model, PROMPT[:2], max_new_tokens=40)
    engine = Engine(Target(model), Scripted(random_tree, expected))
    assert decode(engine, PROMPT[:2], max_new_tokens=40).ids == expected


# -- planted faults ------------------------------------------------------------------------------------------------


def shift_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of a tree stand one position too far."""
    right = Target.forward

    def forward(self: Target, tokens: torch.Tensor, positions: torch.Tensor, *others: Any, **rest: Any) -> Any:
        if (positions.diff() != 1).any():  # a tree with branches, not a prefill
            positions = positions + (positions > positions[0]).long()
        return right(self, tokens, positions, *others, **rest)

    monkeypatch.setattr(Target, "forward", forward)


def leak_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node sees all nodes drafted before it, not its ancestors alone. The walk still knows who is whose parent."""
    monkeypatch.setattr("slipstream.engine.cycle.ancestor_mask", everything_before)
    monkeypatch.setattr("slipstream.target.probe.ancestor_mask", everything_before)
    monkeypatch.setattr("slipstream.engine.cycle.walk", lambda tree, choice, ancestors: walk(tree, choice))


def everything_before(parents: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(parents) + 1, len(parents) + 1, dtype=torch.bool).tril()


def keep_stale_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted rows are not moved to where they belong."""
    right = KVCache.commit
    monkeypatch.setattr(KVCache, "commit", lambda self, slots, count: right(self, None, count))


def shift_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes use the noise of the position before."""
    right = CoupledRule.choose

    def choose(self: CoupledRule, logits: torch.Tensor, tree: DraftTree) -> torch.Tensor:
        return right(self, logits, replace(tree, depth=tree.depth - 1))

    monkeypatch.setattr(CoupledRule, "choose", choose)


FAULTS = {"position": shift_positions, "sibling": leak_siblings, "stale-row": keep_stale_rows, "noise": shift_noise}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_break_the_identity(fault, target, model, monkeypatch):
    """Checks that could not fail would prove nothing."""
    settings = {"temperature": 1.0, "max_new_tokens": NUM_TOKENS}
    expected = [oracle_generate(model, PROMPT, seed=seed, **settings) for seed in range(3)]

    def identical() -> list[bool]:
        engines = [Engine(target, Scripted(right_behind_wrong, truth)) for truth in expected]
        return [
            decode(engine, PROMPT, seed=seed, **settings).ids == truth
            for seed, (engine, truth) in enumerate(zip(engines, expected, strict=True))
        ]

    assert all(identical())
    FAULTS[fault](monkeypatch)
    assert not any(identical())


@pytest.mark.parametrize("fault", ["position", "sibling", "stale-row"])
def test_the_probe_refuses_a_target_with_the_fault(fault, target, monkeypatch):
    probe(target)
    FAULTS[fault](monkeypatch)
    with pytest.raises(UnsupportedTargetError, match="deviate"):
        probe(target)


@both_sizes
def test_plain_is_the_same_engine_without_drafts(target, model):
    settings = {"temperature": 1.0, "seed": 8, "max_new_tokens": NUM_TOKENS}
    result = decode(Engine(target, PlainDrafter()), PROMPT, **settings)
    assert result.ids == oracle_generate(model, PROMPT, **settings)
    assert [len(step.token_ids) for step in result.steps] == [1] * NUM_TOKENS
