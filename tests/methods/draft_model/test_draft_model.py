"""A draft model never changes a token, and drafts what it would itself say after the text."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from doubles import decode, request
from families import VOCAB_SIZE, build, prompt_ids
from methods.learned import near as near_model
from methods.watching import Watching
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.shape import Auto, Dynamic
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.draft_model.drafter import DraftChain, DraftModelDrafter
from slipstream.methods.registry import build_drafter
from slipstream.runtime.costs import ROWS
from slipstream.target.target import Target
from test_rejection import NUM_NEW, VOCAB, Memory, law, p_value, remembered
from test_rejection import PROMPT as REJECTION_PROMPT

PROMPT = prompt_ids(7, seed=4) * 3
NUM_TOKENS = 14
WIDE = Dynamic(width=6, depth=3, total=30)
CHAIN = DraftChain(length=4, threshold=0.05)
TREES: dict[str, dict[str, Any]] = {
    "dynamic": {"shape": WIDE},
    "chain": {"shape": CHAIN},
}
WHOLE_CHAIN = {"shape": DraftChain(length=3, threshold=0.0)}
NARROW_TREE = {"shape": Dynamic(width=2, depth=3, total=8)}
WHOLE_TREE = {"shape": Dynamic(width=6, depth=3, total=78)}


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


@pytest.fixture(scope="module")
def small() -> Target:
    """A draft model of one layer that agrees with nobody."""
    return Target(build("llama", num_hidden_layers=1, seed=8, weight_std=0.3))


@functools.cache
def near() -> Target:
    """A draft model that often says what the llama target says."""
    return Target(near_model(build("llama")))


class Watched(Watching, DraftModelDrafter):
    """Keeps what it proposed."""


# -- lossless ------------------------------------------------------------------------------------------------------


@in_both_sizes("temperature", [0.0, 0.9])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gemma2", "mixtral", "longrope", "dynamic-rope", "llama4-temperature"]
)
def test_tokens_are_those_of_plain_decoding(name, tree, temperature, family_model, small):
    target = Target(family_model(name))
    settings = {"max_new_tokens": 9, "temperature": temperature, "seed": 5}
    expected = oracle_generate(target.model, PROMPT, **settings)
    assert decode(Engine(target, DraftModelDrafter(target, small, **TREES[tree])), PROMPT, **settings).ids == expected


@in_both_sizes("temperature", [0.0, 1.1])
@pytest.mark.parametrize("tree", TREES)
def test_a_near_model_is_accepted_often_and_changes_nothing(tree, temperature, target):
    settings = {"max_new_tokens": 30, "temperature": temperature, "seed": 2}
    result = decode(Engine(target, DraftModelDrafter(target, near(), **TREES[tree])), PROMPT, **settings)
    assert result.ids == oracle_generate(target.model, PROMPT, **settings)
    assert {step.num_accepted for step in result.steps} >= {0, 1, 2}, "both outcomes must be common"


def test_generations_do_not_touch_each_other(target):
    engine = Engine(target, DraftModelDrafter(target, near(), **TREES["dynamic"]))
    first = decode(engine, PROMPT, max_new_tokens=9)
    stream = engine.generate(request(PROMPT, max_new_tokens=9, temperature=1.0))
    next(stream)
    second = decode(engine, PROMPT, max_new_tokens=9)
    stream.close()
    assert [s.num_accepted for s in first.steps] == [s.num_accepted for s in second.steps]
    assert first.ids == second.ids


@pytest.mark.parametrize("draft_vocab", [VOCAB - 1, VOCAB + 2])
def test_a_sampled_chain_follows_the_targets_law_whatever_the_drafts_vocabulary(draft_vocab):
    """Rejection of a chain itself is proved in test_rejection; here q comes from a model of another size."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    target = Target(build("llama", vocab_size=VOCAB, weight_std=0.4, **sizes))
    draft = Target(build("llama", vocab_size=draft_vocab, weight_std=0.3, num_hidden_layers=1, seed=6, **sizes))
    chain = DraftChain(length=3, threshold=0.4, schedule="heuristic")
    engine = Engine(target, DraftModelDrafter(target, draft, chain))
    one, texts, accepted = request(REJECTION_PROMPT, max_new_tokens=NUM_NEW, temperature=1.0), [], []
    memories: tuple[Memory, Memory] = ({}, {})
    with remembered(target, memories[0]), remembered(draft, memories[1]):
        for seed in range(600):
            sampled = replace(one, sampling=SamplingSettings(seed=seed, verification="rejection"))
            steps = list(engine.generate(sampled))
            texts.append(tuple(token for step in steps for token in step.token_ids))
            accepted += [step.num_accepted > 0 for step in steps if step.num_drafted]
    assert p_value(texts, law(target.model, {"temperature": 1.0})) > 1e-3
    assert 0.1 < sum(accepted) / len(accepted) < 0.9


# -- right drafts --------------------------------------------------------------------------------------------------


@in_both_sizes("temperature", [0.0, 1.0])
@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("options", [WHOLE_CHAIN, WHOLE_TREE], ids=["chain", "dynamic"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mistral", "llama4", "deepseek_v3", "longrope"])
def test_a_target_that_drafts_for_itself_is_always_accepted(name, options, chunk, temperature, family_model):
    """Fails on any shift of tokens, positions, slots, windows or noise. The longrope model crosses its boundary."""
    target = Target(family_model(name))
    settings = {"max_new_tokens": 29, "temperature": temperature, "seed": 3}
    engine = Engine(target, DraftModelDrafter(target, target, **options), prefill_chunk=chunk)
    result = decode(engine, PROMPT[:13], **settings)
    assert result.ids == oracle_generate(target.model, PROMPT[:13], **settings)
    assert len(set(result.ids)) > 5, "the text is too dull to show anything"
    lengths = [len(step.token_ids) for step in result.steps]
    if name != "longrope":  # the boundary cuts one draft short
        assert lengths == [4] * 7 + [1]
    else:
        assert sorted(lengths)[2:] == [4] * (len(lengths) - 2)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("chunk", [4, 512])
def test_the_cache_holds_committed_tokens_only(tree, chunk, target):
    draft = near()
    drafter = Watched(target, draft, **TREES[tree])
    result = decode(Engine(target, drafter, prefill_chunk=chunk), PROMPT, max_new_tokens=30)
    assert 0 < result.num_accepted < sum(step.num_drafted for step in result.steps)
    cache, tokens = drafter.drafting.expander.cache, [*PROMPT, *result.ids]
    n = cache.length
    assert len(PROMPT) < n < len(tokens)
    fresh = draft.new_cache(0)
    draft.forward(torch.tensor(tokens[:n]), torch.arange(n), draft.causal(n), fresh)
    for kept, expected in zip(cache.layers, fresh.layers, strict=True):
        assert torch.allclose(kept.keys[:, :, :n], expected.keys[:, :, :n], atol=1e-9)
        assert torch.allclose(kept.values[:, :, :n], expected.values[:, :, :n], atol=1e-9)
    assert torch.equal(cache.positions[0, :n], torch.arange(n))


# -- limits of the draft model -------------------------------------------------------------------------------------


@both_sizes
@pytest.mark.parametrize("tree", TREES)
def test_drafting_ends_with_the_draft_models_context(tree, target, caplog):
    model = build("llama", max_position_embeddings=len(PROMPT) + 8)
    drafter = Watched(target, Target(model), **TREES[tree])
    with caplog.at_level(logging.WARNING):
        result = decode(Engine(target, drafter), PROMPT, max_new_tokens=30)
    assert result.ids == oracle_generate(target.model, PROMPT, max_new_tokens=30)
    assert [step.num_drafted > 0 for step in result.steps[:2]] == [True, True]
    assert [step.num_drafted for step in result.steps[-10:]] == [0] * 10
    assert sum(f"ends at its {len(PROMPT) + 8} tokens" in record.message for record in caplog.records) == 1
    assert max(int(p.max()) for p in (drafter.drafting.expander.cache.positions,)) < len(PROMPT) + 8
    long = decode(Engine(target, drafter), prompt_ids(40), max_new_tokens=5)
    assert [step.num_drafted for step in long.steps] == [0] * 5


@both_sizes
@pytest.mark.parametrize("name", ["dynamic-rope", "longrope"])
def test_a_rope_that_depends_on_the_pass_is_never_straddled(name, family_model, target):
    """Up to 32 tokens its frequencies are fixed; beyond, dynamic ends the drafts and longrope goes on with new keys."""
    draft = Target(family_model(name))
    lengths: list[tuple[int, int]] = []  # positions of each pass of the draft model
    forward = draft.forward

    def spied(tokens: Any, positions: Any, *others: Any, **rest: Any) -> Any:
        lengths.append((int(positions.min()), int(positions.max())))
        return forward(tokens, positions, *others, **rest)

    draft.forward = spied  # type: ignore[method-assign]
    result = decode(Engine(target, DraftModelDrafter(target, draft, **NARROW_TREE)), PROMPT, max_new_tokens=30)
    assert result.ids == oracle_generate(target.model, PROMPT, max_new_tokens=30)
    drafted = [step.num_drafted for step in result.steps]
    assert drafted[0] > 0
    if name == "longrope":
        assert all(first == 0 or (first < 32) == (last < 32) for first, last in lengths)
        assert (0, 32) in lengths, "all keys are made anew at the boundary"
        assert drafted[-2] > 0
    else:
        assert max(last for _, last in lengths) < 32
        assert set(drafted[-12:]) == {0}


@both_sizes
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("size", [VOCAB_SIZE - 20, VOCAB_SIZE + 16])
def test_padded_vocabularies_use_the_common_part(size, tree, target):
    """The target's words beyond the draft's are read as its last one and never drafted; those it lacks are cut off."""
    drafter = Watched(target, Target(build("llama", vocab_size=size, weight_std=0.3)), **TREES[tree])
    settings = {"max_new_tokens": 25, "temperature": 1.5, "seed": 3}
    result = decode(Engine(target, drafter), PROMPT, **settings)
    assert result.ids == oracle_generate(target.model, PROMPT, **settings)
    assert max(result.ids) >= VOCAB_SIZE - 20, "no word that the smaller vocabulary lacks"
    drafted = torch.cat([tree.tokens for _, tree in drafter.proposals])
    assert len(drafted) > 20
    assert int(drafted.max()) < min(size, VOCAB_SIZE)


# -- lengths and shapes --------------------------------------------------------------------------------------------


def test_the_heuristic_steers_the_chains(target):
    settings = DraftChain(length=9, threshold=0.0, schedule="heuristic")
    drafter = DraftModelDrafter(target, target, settings)
    result = decode(Engine(target, drafter), PROMPT, max_new_tokens=6 + 8 + 10 + 10)
    assert [step.num_drafted for step in result.steps] == [5, 7, 9, 9]


def test_an_unsure_draft_model_ends_its_chain(target, small):
    def sizes(threshold: float) -> set[int]:
        settings = DraftChain(length=6, threshold=threshold)
        drafter = DraftModelDrafter(target, small, settings)
        return {step.num_drafted for step in decode(Engine(target, drafter), PROMPT, max_new_tokens=12).steps[:-6]}

    assert sizes(0.0) == {6}
    assert sizes(1.0) == {1}


def test_the_adaptive_threshold_follows_what_is_accepted(target, small):
    settings = DraftChain(length=6, threshold=0.2, adaptive=True)
    drafter = DraftModelDrafter(target, small, settings)
    decode(Engine(target, drafter), PROMPT, max_new_tokens=20)
    assert drafter.shape.exit_rule.gamma > 0.2


def test_trees_are_sized_by_measured_cost(target, small):
    largest = Dynamic(width=3, depth=3, total=8)
    costs = DraftModelDrafter(target, small).measure(largest)
    assert costs.draft_s[0] == 0 < costs.draft_s[1] <= costs.draft_s[3]
    assert [rows for rows, _ in costs.verify_s] == list(ROWS)
    drafter = DraftModelDrafter(target, small, shape=Auto(largest))
    result = decode(Engine(target, drafter), PROMPT, max_new_tokens=60)
    assert result.ids == oracle_generate(target.model, PROMPT, max_new_tokens=60)
    assert drafter.shape.costs is not None
    assert result.steps[0].num_drafted == 6, "width + depth until more is known"
    assert [step.num_drafted for step in result.steps[9:-4]].count(0) > 30, "a useless draft model is left alone"


def test_measuring_stays_within_the_draft_models_context(target):
    tiny = Target(build("gpt2", sizes={"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 5}))
    assert len(DraftModelDrafter(target, tiny).measure(Dynamic(width=2, depth=4, total=6)).draft_s) == 5


def test_slots_are_enough_for_every_draft(target):
    for options in TREES.values():
        drafter = DraftModelDrafter(target, target, **options)
        result = decode(Engine(target, drafter), PROMPT, max_new_tokens=8)
        assert max(step.num_drafted for step in result.steps) < drafter.draft_slots


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "sometimes"}, "unknown schedule 'sometimes'"),
        ({"length": 0}, "length is 0"),
        ({"threshold": 2}, "threshold is 2"),
    ],
)
def test_chain_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        DraftChain(**wrong)


def test_an_unknown_kind_of_tree_is_refused(target):
    with pytest.raises(InputError, match="dynamic"):
        build_drafter("draft-model", target, {"draft": "unread", "tree": "dynamc"})


def test_a_shifted_position_is_noticed(target, monkeypatch):
    """The tests of a target drafting for itself are worth something."""
    right = DraftModelDrafter.forward

    def late(self: DraftModelDrafter, tokens: Any, positions: Any, visible: Any, cache: Any, start: Any = None) -> Any:
        return right(self, tokens, positions + (start is not None), visible, cache, start=start)

    monkeypatch.setattr(DraftModelDrafter, "forward", late)
    result = decode(Engine(target, DraftModelDrafter(target, target, **WHOLE_CHAIN)), PROMPT, max_new_tokens=29)
    assert [len(step.token_ids) for step in result.steps] != [4] * 7 + [1]
