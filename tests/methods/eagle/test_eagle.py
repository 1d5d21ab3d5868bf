"""The EAGLE drafters never change a token, and draft what the head says of the true features at the right positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from doubles import decode, request
from families import build, prompt_ids
from methods.eagle.eagle_reference import reference_draft, true_features
from methods.watching import Watching
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.published_trees import EAGLE_1
from slipstream.drafting.shape import Dynamic, Static, default_tree
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.eagle.checkpoint import save_head
from slipstream.methods.eagle.drafter import EagleDrafter, EagleExpander
from slipstream.methods.eagle.head import EagleHead, HeadSizes
from slipstream.methods.registry import METHODS, build_drafter, find_method
from slipstream.target.masks import additive
from slipstream.target.target import Target

FAMILIES = ("llama", "qwen2", "gemma2", "mistral", "gpt2", "longrope", "gemma", "granite", "opt")
PROMPT = prompt_ids(7, seed=4) * 3
WIDE = Dynamic(width=6, depth=3, total=30)
NUM_TOKENS = 14
STATIC = Static(EAGLE_1)
SHAPES = {"eagle2": WIDE, "eagle": STATIC}


def random_head(target: Target, seed: int = 0) -> EagleHead:
    """A head of the target's sizes with weights large enough that context decides its drafts."""
    sizes = HeadSizes.like(target)
    head = EagleHead(replace(sizes, biases=frozenset({"fc", "q_proj", "k_proj", "v_proj"})))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.4)
    return head.place(target.device, target.dtype).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def targets(family_model) -> dict[str, Target]:
    return {name: Target(family_model(name)) for name in FAMILIES}


class Watched(Watching, EagleDrafter):
    """Keeps what it proposed."""


# -- lossless ------------------------------------------------------------------------------------------------------


@in_both_sizes("temperature", [0.0, 0.9])
@pytest.mark.parametrize("method", SHAPES)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("gemma", "granite")])
def test_tokens_are_those_of_plain_decoding(name, method, temperature, targets):
    target = targets[name]
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": temperature, "seed": 5}
    drafter = EagleDrafter(target, random_head(target), SHAPES[method])
    expected = oracle_generate(target.model, PROMPT, **settings)
    assert decode(Engine(target, drafter), PROMPT, **settings).ids == expected


@in_both_sizes("budget", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt_length", [1, 2, 9])
@pytest.mark.parametrize("method", SHAPES)
def test_budgets_and_short_prompts_are_exact(method, prompt_length, budget, targets):
    target, prompt = targets["llama"], prompt_ids(prompt_length, seed=3)
    drafter = EagleDrafter(target, random_head(target), SHAPES[method])
    result = decode(Engine(target, drafter, prefill_chunk=2), prompt, max_new_tokens=budget)
    assert result.ids == oracle_generate(target.model, prompt, max_new_tokens=budget)
    assert sum(step.num_accepted for step in result.steps) <= budget


@both_sizes
@pytest.mark.parametrize("method", SHAPES)
def test_the_context_limit_is_exact(method):
    target = Target(build("llama", max_position_embeddings=40))
    drafter = EagleDrafter(target, random_head(target), SHAPES[method])
    result = decode(Engine(target, drafter), PROMPT, max_new_tokens=60)
    assert (len(PROMPT) + len(result.ids), result.finish_reason) == (40, "context")


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("method", SHAPES)
def test_sampled_budgets_and_ends_are_exact(method, budget, targets):
    target = targets["qwen2"]
    settings = {"max_new_tokens": budget, "temperature": 1.3, "seed": 11, "repetition_penalty": 1.4}
    expected = oracle_generate(target.model, PROMPT, **settings)
    end = {"eos_token_ids": (expected[len(expected) // 2],)}
    engine = Engine(target, EagleDrafter(target, random_head(target), SHAPES[method]))
    assert decode(engine, PROMPT, **settings).ids == expected
    assert decode(engine, PROMPT, **settings, **end).ids == oracle_generate(target.model, PROMPT, **settings, **end)


@pytest.mark.parametrize("method", SHAPES)
def test_rejection_verification_follows_the_target(method, targets):
    """With a target that is sure of every token the published rule has one outcome, the greedy one."""
    target = targets["llama"]
    expected = oracle_generate(target.model, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter = EagleDrafter(target, random_head(target), SHAPES[method])
    one = request(PROMPT, max_new_tokens=NUM_TOKENS, temperature=1e-3)
    one = replace(one, sampling=SamplingSettings(seed=1, verification="rejection"))
    steps = list(Engine(target, drafter).generate(one))
    assert [token for step in steps for token in step.token_ids] == expected


def test_generations_do_not_touch_each_other(targets):
    target = targets["llama"]
    engine = Engine(target, EagleDrafter(target, random_head(target), WIDE))
    first = decode(engine, PROMPT, max_new_tokens=9)
    stream = engine.generate(request(PROMPT, max_new_tokens=9, temperature=1.0))
    next(stream)
    second = decode(engine, PROMPT, max_new_tokens=9)
    stream.close()
    assert [s.num_accepted for s in first.steps] == [s.num_accepted for s in second.steps]
    assert first.ids == second.ids


# -- right drafts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("name", ["llama", "gemma", "granite", "gpt2"])
def test_drafts_are_the_heads_own_on_the_whole_text(name, chunk, targets):
    """Against every step recomputed from the first token, without a cache and without the engine."""
    target = targets[name]
    head = random_head(target, seed=2)
    drafter = Watched(target, head, Dynamic(width=1, depth=3, total=3))
    decode(Engine(target, drafter, prefill_chunk=chunk), PROMPT, max_new_tokens=6)
    assert len(drafter.proposals) >= 4
    for tokens, tree in drafter.proposals:
        drafted = tree.tokens.tolist()
        assert drafted == reference_draft(target, head, tokens, len(drafted))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_cache_holds_the_accepted_tokens_only(name, targets):
    target = targets[name]
    head = random_head(target)
    drafter = Watched(target, head, WIDE)
    result = decode(Engine(target, drafter, prefill_chunk=4), PROMPT, max_new_tokens=40)
    assert max(step.num_accepted for step in result.steps) >= 1, "no branch was ever accepted: the test shows nothing"
    tokens, cache = drafter.proposals[-1][0], drafter.drafting.expander.cache
    n = len(tokens) - 1
    assert cache.length == n
    fresh = head.new_cache(target.device, None)
    fresh.begin(0, torch.arange(n))
    embeddings = target.model.get_input_embeddings()(torch.tensor(tokens[1:]))
    mask = additive(torch.ones(n, n).tril().bool()[None], head.dtype)
    with torch.inference_mode():
        head(embeddings[None], true_features(target, tokens[:-1])[None], torch.arange(n)[None], mask, fresh)
    for kept, expected in (
        (cache.layers[0].keys, fresh.layers[0].keys),
        (cache.layers[0].values, fresh.layers[0].values),
    ):
        assert torch.allclose(kept[:, :, :n], expected[:, :, :n], atol=1e-9)
    assert torch.equal(cache.positions[0, :n], torch.arange(n))


def exact_pair() -> tuple[Target, EagleHead]:
    """A one-layer target and a head that computes it: its drafts are the target's greedy text.

    fc passes the embedding on. Embeddings have unit mean square, so the target's input norm changes nothing, and its
    final norm scales all logits of a row alike. The head never sees the first token, so no query may attend to it:
    in every head the slowest rotary dimension reads a mark that only this token (BOS, 1) has the other way round.
    """
    model = build("llama", num_hidden_layers=1, rope_parameters={"rope_type": "default", "rope_theta": 1e8})
    layer, width, head_dim = model.model.layers[0], 32, 8
    with torch.no_grad():
        for norm in (layer.input_layernorm, model.model.norm):
            norm.weight.fill_(1.0)
        rows = model.model.embed_tokens.weight
        rows[:, 0] = 0.0
        rows *= (width - 1) ** 0.5 / rows.norm(dim=1, keepdim=True)
        rows[:, 0] = 1.0
        rows[1, 0] = -1.0
        for projection, strength in ((layer.self_attn.q_proj, 40.0), (layer.self_attn.k_proj, 40.0)):
            slowest = torch.arange(projection.weight.shape[0]) % (head_dim // 2) == head_dim // 2 - 1
            projection.weight[slowest] = 0.0
            projection.weight[torch.arange(projection.weight.shape[0]) % head_dim == head_dim // 2 - 1, 0] = strength
    target = Target(model)
    head = EagleHead(replace(HeadSizes.like(target), rope=dict(model.config.rope_parameters)))
    head.place(target.device, target.dtype)
    with torch.no_grad():
        head.fc.weight.copy_(torch.cat((torch.eye(width), torch.zeros(width, width)), dim=1))
        nn.init.zeros_(head.fc.bias)
        own = head.layers[0].state_dict()
        head.layers[0].load_state_dict({name: layer.state_dict()[name] for name in own})
    return target, head.requires_grad_(False).eval()


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("shape", [Dynamic(width=1, depth=4, total=4), Dynamic(width=4, depth=4, total=12), STATIC])
def test_a_head_that_computes_the_target_is_always_accepted(shape, chunk):
    """Fails on any shift of tokens, features, positions or slots."""
    target, head = exact_pair()
    prompt = [1, *(token for token in PROMPT if token != 1)]
    result = decode(Engine(target, EagleDrafter(target, head, shape), prefill_chunk=chunk), prompt, max_new_tokens=41)
    assert result.ids == oracle_generate(target.model, prompt, max_new_tokens=41)
    assert len(set(result.ids)) > 5, "the text is too dull to show anything"
    assert [len(step.token_ids) for step in result.steps[:-1]] == [shape.depth + 1] * (41 // (shape.depth + 1))


def test_a_shifted_position_is_noticed(monkeypatch):
    """The test above is worth something: the same head with its draft rows one position late is rejected."""
    target, head = exact_pair()
    forward = EagleExpander._pass

    def late(self: EagleExpander, tokens: Any, features: Any, positions: Any, visible: Any, start: int) -> Any:
        return forward(self, tokens, features, positions + (start >= self.cache.length > 0), visible, start)

    def tau() -> float:
        drafter = EagleDrafter(target, head, Dynamic(width=1, depth=4, total=4))
        return 41 / len(decode(Engine(target, drafter), [1, *PROMPT], max_new_tokens=41).steps)

    exact = tau()
    monkeypatch.setattr(EagleExpander, "_pass", late)
    assert tau() < exact


# -- options -------------------------------------------------------------------------------------------------------


def test_methods_are_built_from_a_folder(targets, tmp_path):
    target = targets["llama"]
    save_head(random_head(target), tmp_path, target)
    eagle2 = build_drafter("eagle2", target, {"draft": tmp_path, "width": 2, "total": 7})
    assert (eagle2.name, eagle2.shape) == ("eagle2", Dynamic(width=2, depth=5, total=7))
    eagle = build_drafter("eagle", target, {"draft": str(tmp_path)})
    assert (eagle.name, eagle.shape.most_nodes, eagle.shape.depth) == ("eagle", 25, 5)


@pytest.mark.parametrize("option", ["by_value", "rerank"])
def test_options_of_the_ablations_say_where_they_went(option):
    with pytest.raises(InputError, match=f"no option '{option}' any more: .*ablations"):
        find_method("eagle2", {option: False})


@pytest.mark.parametrize("method", ["eagle", "eagle2"])
def test_a_missing_head_is_one_clear_line(method, targets):
    with pytest.raises(InputError, match=f"{method}.*draft=PATH.*slipstream train eagle"):
        METHODS[method].build(targets["llama"], {})


@pytest.mark.parametrize(("billions", "total"), [(0.01, 20), (7.2, 60), (13, 50), (70, 48)])
def test_default_trees_are_the_papers(billions, total):
    shape = default_tree(int(billions * 1e9))
    assert shape.total == total
    assert billions < 3 or (shape.width, shape.depth) == (10, 6)


def test_slots_are_enough_for_every_tree(targets):
    target = targets["llama"]
    for shape in (WIDE, STATIC):
        drafter = Watched(target, random_head(target), shape)
        sizes: list[int] = []
        for step in Engine(target, drafter).generate(request(PROMPT, max_new_tokens=8)):
            sizes.append(step.num_drafted)
        assert max(sizes) < drafter.draft_slots
