"""Hydra never changes a token, and its heads start from the feature of the token before the root."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from doubles import decode, request
from families import CONTEXT, build, prompt_ids
from methods.eagle.eagle_reference import true_features
from methods.hydra.hydra_reference import reference_draft, reference_prefix
from methods.watching import Watching
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.confidence import ConfidenceScale
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.published_trees import published_tree
from slipstream.drafting.shape import Auto, Dynamic, Static
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.hydra.checkpoint import published_names, save_heads
from slipstream.methods.hydra.drafter import HydraDrafter, HydraExpander
from slipstream.methods.hydra.head import HydraHeads, HydraSizes, PrefixSizes
from slipstream.methods.registry import METHODS, build_drafter
from slipstream.target.target import Target

FAMILIES = ("llama", "qwen2", "gemma2", "mistral", "gpt2", "longrope", "opt", "mixtral")
PROMPT = prompt_ids(7, seed=4) * 3
NUM_TOKENS, NUM_HEADS = 14, 3
PATHS = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2, 1), (0, 0, 0), (0, 0, 2), (1, 0, 0), (0, 0, 0, 0))
CYCLE = torch.randperm(64, generator=torch.Generator().manual_seed(2)).tolist()  # the order of `exact_pair`'s tokens
STATIC = Static(PATHS)  # one level deeper than there are heads
SHAPES = {"dynamic": Dynamic(width=6, depth=3, total=24), "static": STATIC}


def random_heads(
    target: Target, *, prefix: bool = True, own: bool = False, seed: int = 0, offset: int = 0
) -> HydraHeads:
    """Heads of the target's sizes with weights large enough that feature and path decide their drafts."""
    sizes = HydraSizes(
        hidden_size=target.config.hidden_size,
        embedding_size=target.model.get_input_embeddings().weight.shape[1],
        num_heads=NUM_HEADS,
        num_layers=2,
        prefix=PrefixSizes.like(target) if prefix else None,
        vocab_size=target.vocab_size if own else None,
        feature_offset=offset,
    )
    heads = HydraHeads(sizes)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.4)
    return heads.place(target.device, target.dtype).requires_grad_(False).eval()


def tensors_of(heads: HydraHeads) -> dict[str, torch.Tensor]:
    """The heads under their published names."""
    own = heads.state_dict()
    return {name: own[mine] for name, mine in published_names(heads.sizes, dropout=True).items()}


@pytest.fixture(scope="module")
def targets(family_model) -> dict[str, Target]:
    return {name: Target(family_model(name)) for name in FAMILIES}


class Watched(Watching, HydraDrafter):
    """Keeps what it proposed."""


# -- lossless ------------------------------------------------------------------------------------------------------


@in_both_sizes("temperature", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_plain_decoding(name, shape, temperature, targets):
    target = targets[name]
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": temperature, "seed": 5}
    expected = oracle_generate(target.model, PROMPT, **settings)
    for prefix, own in ((True, False), (False, True)):
        drafter = HydraDrafter(target, random_heads(target, prefix=prefix, own=own), SHAPES[shape])
        assert decode(Engine(target, drafter), PROMPT, **settings).ids == expected


@in_both_sizes("budget", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt_length", [1, 2, 9])
@pytest.mark.parametrize("prefix", [True, False])
def test_budgets_and_short_prompts_are_exact(prefix, prompt_length, budget, targets):
    target, prompt = targets["llama"], prompt_ids(prompt_length, seed=3)
    drafter = HydraDrafter(target, random_heads(target, prefix=prefix), SHAPES["dynamic"])
    result = decode(Engine(target, drafter, prefill_chunk=2), prompt, max_new_tokens=budget)
    assert result.ids == oracle_generate(target.model, prompt, max_new_tokens=budget)
    assert sum(step.num_accepted for step in result.steps) <= budget


@both_sizes
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "longrope"])
def test_the_context_limit_is_exact(name, shape, targets):
    target, prompt = targets[name], prompt_ids(CONTEXT - 6)
    drafter = HydraDrafter(target, random_heads(target), SHAPES[shape])
    result = decode(Engine(target, drafter), prompt, max_new_tokens=60)
    assert (result.ids, result.finish_reason) == (
        oracle_generate(target.model, prompt, max_new_tokens=60, context_length=CONTEXT),
        "context",
    )


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_budgets_penalties_and_ends_are_exact(shape, budget, targets):
    target = targets["qwen2"]
    settings = {"max_new_tokens": budget, "temperature": 1.3, "seed": 11, "repetition_penalty": 1.4}
    expected = oracle_generate(target.model, PROMPT, **settings)
    end = {"eos_token_ids": (expected[len(expected) // 2],)}
    engine = Engine(target, HydraDrafter(target, random_heads(target), SHAPES[shape]))
    assert decode(engine, PROMPT, **settings).ids == expected
    assert decode(engine, PROMPT, **settings, **end).ids == oracle_generate(target.model, PROMPT, **settings, **end)


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_an_interrupted_stream_leaves_nothing_behind(num_steps, targets):
    target = targets["llama"]
    engine = Engine(target, HydraDrafter(target, random_heads(target), SHAPES["dynamic"]))
    whole = decode(engine, PROMPT, max_new_tokens=8).ids
    hooks = [len(module._forward_hooks) for module in target.model.modules()]
    stream = engine.generate(request(PROMPT, max_new_tokens=8, temperature=1.0, seed=4))
    for _ in range(num_steps):
        next(stream)
    stream.close()
    assert [len(module._forward_hooks) for module in target.model.modules()] == hooks
    assert decode(engine, PROMPT, max_new_tokens=8).ids == whole


@pytest.mark.parametrize("shape", SHAPES)
def test_rejection_verification_follows_the_target(shape, targets):
    """With a target that is sure of every token the published rule has one outcome, the greedy one."""
    target = targets["llama"]
    expected = oracle_generate(target.model, PROMPT, max_new_tokens=NUM_TOKENS)
    one = request(PROMPT, max_new_tokens=NUM_TOKENS, temperature=1e-3)
    one = replace(one, sampling=SamplingSettings(seed=1, verification="rejection"))
    steps = list(Engine(target, HydraDrafter(target, random_heads(target), SHAPES[shape])).generate(one))
    assert [token for step in steps for token in step.token_ids] == expected


def test_generations_do_not_touch_each_other(targets):
    target = targets["llama"]
    engine = Engine(target, HydraDrafter(target, random_heads(target), SHAPES["dynamic"]))
    first = decode(engine, PROMPT, max_new_tokens=9)
    stream = engine.generate(request(PROMPT, max_new_tokens=9, temperature=1.0))
    next(stream)
    second = decode(engine, PROMPT, max_new_tokens=9)
    stream.close()
    assert [s.num_accepted for s in first.steps] == [s.num_accepted for s in second.steps]
    assert first.ids == second.ids


# -- right drafts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_drafts_are_the_heads_own_on_the_whole_text(name, prefix, chunk, targets):
    """Against every step recomputed from the first token, without a cache and without the engine."""
    target = targets[name]
    heads = random_heads(target, prefix=prefix, seed=2)
    drafter = Watched(target, heads, Dynamic(width=1, depth=3, total=3))
    decode(Engine(target, drafter, prefill_chunk=chunk), PROMPT, max_new_tokens=6)
    assert len(drafter.proposals) >= 4
    assert len({tuple(tree.tokens.tolist()) for _, tree in drafter.proposals}) > 2
    for tokens, tree in drafter.proposals:
        drafted = tree.tokens.tolist()
        assert drafted == reference_draft(tensors_of(heads), target, tokens, len(drafted))


def test_every_branch_is_drafted_from_its_own_path(targets):
    """In a dynamic tree each node's children are the best of the head that saw exactly this path."""
    target = targets["llama"]
    heads = random_heads(target, seed=2)
    drafter = Watched(target, heads, Dynamic(width=3, depth=3, total=100))
    decode(Engine(target, drafter), PROMPT, max_new_tokens=5)
    tokens, tree = drafter.proposals[0]
    checked = 0
    for parent in range(-1, tree.num_nodes):
        children = [int(t) for t, p in zip(tree.tokens, tree.parents, strict=True) if p == parent]
        if children:
            path, node = [], parent
            while node >= 0:
                path, node = [int(tree.tokens[node]), *path], int(tree.parents[node])
            assert children == best_children(tensors_of(heads), target, tokens, path, len(children))
            checked += 1
    assert checked == 1 + 3 + 3


def best_children(tensors, target: Target, tokens: list[int], path: list[int], count: int) -> list[int]:
    from methods.hydra.hydra_reference import reference_head, reference_logits

    config = target.config
    with torch.no_grad():
        features = true_features(target, tokens[:-1])
        theta = config.rope_parameters["rope_theta"]
        sizes = {"heads": config.num_attention_heads, "eps": config.rms_norm_eps, "theta": theta}
        start = reference_prefix(tensors, features, **sizes)[-1]
        embeddings = target.model.get_input_embeddings()(torch.tensor([tokens[-1], *path]))
        hidden = reference_head(tensors, len(path), start, embeddings)
        return reference_logits(tensors, len(path), hidden, target).topk(count).indices.tolist()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_prefix_cache_holds_the_committed_tokens_only(name, targets):
    target = targets[name]
    heads = random_heads(target)
    drafter = Watched(target, heads, Dynamic(width=8, depth=3, total=60))
    result = decode(Engine(target, drafter, prefill_chunk=4), PROMPT, max_new_tokens=40)
    assert max(step.num_accepted for step in result.steps) >= 1, "no branch was ever accepted: the test shows nothing"
    tokens, cache = drafter.proposals[-1][0], drafter.drafting.expander._prefix.cache
    n = len(tokens) - 1
    assert cache.length == n
    fresh = heads.new_cache(target.device, None)
    fresh.begin(0, torch.arange(n))
    with torch.inference_mode():
        mask = torch.ones(n, n).tril().bool()[None, None]
        heads.prefix(true_features(target, tokens[:-1])[None], torch.arange(n)[None], mask, fresh)
    for kept, expected in ((c.layers[0].keys, f.layers[0].keys) for c, f in ((cache, fresh),)):
        assert torch.allclose(kept[:, :, :n], expected[:, :, :n], atol=1e-9)
    assert torch.equal(cache.positions[0, :n], torch.arange(n))


def exact_pair(part: int, *, prefix: bool = False) -> tuple[Target, HydraHeads]:
    """A target that always follows token x by next(x), and heads that know it from one part of their input.

    The target's layers do nothing and its embedding is one-hot, so a feature names its token. Part 0 of a head's input
    is the feature of token t, part j the embedding of token t + j; head i has to find token t + 2 + i from it, which is
    2 + i - part steps further. (A part that a head has not got yet is replaced by the last that it has.)
    """
    width = 64
    model = build("llama", hidden_size=width, num_attention_heads=4, num_key_value_heads=4, head_dim=16)
    cycle = torch.tensor(CYCLE)
    follow = torch.empty(width, dtype=torch.int64)
    follow[cycle] = cycle.roll(-1)  # one cycle through the whole vocabulary
    step = torch.nn.functional.one_hot(follow, width).T.to(torch.float64)  # [next, token]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        model.lm_head.weight.copy_(step)
    target = Target(model)
    sizes = HydraSizes(
        hidden_size=width,
        embedding_size=width,
        num_heads=4,
        prefix=PrefixSizes.like(target) if prefix else None,
        vocab_size=width,
    )
    heads = HydraHeads(sizes).place(target.device, target.dtype)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.zero_()
        if heads.prefix is not None:
            heads.prefix.norm.weight.fill_(1.0)
        for index, mlp in enumerate(heads.mlps):
            read = min(part, index + 1)
            mlp.first.res_connection.weight[:, read * width : (read + 1) * width] = torch.eye(width)
            sure = 20.0  # as a confidence it keeps the right path above its siblings
            heads.lm_heads[index].weight.copy_(sure * torch.linalg.matrix_power(step, 2 + index - read))
    return target, heads.requires_grad_(False).eval()


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("shape", [Dynamic(width=1, depth=4, total=4), Dynamic(width=4, depth=4, total=12), STATIC])
@pytest.mark.parametrize("part", [0, 1, 2, 9])
def test_heads_that_know_the_target_are_always_accepted(part, shape, chunk):
    """Fails on any shift between features, embeddings and heads, whichever of them is read."""
    target, heads = exact_pair(part)
    result = decode(
        Engine(target, HydraDrafter(target, heads, shape), prefill_chunk=chunk), CYCLE[:9], max_new_tokens=41
    )
    assert result.ids == oracle_generate(target.model, CYCLE[:9], max_new_tokens=41)
    assert len(set(result.ids)) == 41
    assert [len(step.token_ids) for step in result.steps[:-1]] == [5] * 8


def test_heads_behind_the_prefix_layer_are_aligned_too():
    target, heads = exact_pair(0, prefix=True)
    drafter = HydraDrafter(target, heads, Dynamic(width=1, depth=4, total=4))
    result = decode(Engine(target, drafter, prefill_chunk=3), CYCLE[:9], max_new_tokens=41)
    assert [len(step.token_ids) for step in result.steps[:-1]] == [5] * 8


def test_a_shifted_feature_is_noticed(monkeypatch):
    """The tests above are worth something: the same heads fed with the feature one token earlier are never right."""
    target, heads = exact_pair(0)
    catch_up = HydraExpander.catch_up

    def late(self: HydraExpander, observed: Any) -> None:
        old = self._feature
        catch_up(self, observed)
        self._feature = observed.features[-2:-1] if len(observed.tokens) > 1 else old

    monkeypatch.setattr(HydraExpander, "catch_up", late)
    drafter = HydraDrafter(target, heads, Dynamic(width=1, depth=4, total=4))
    assert len(decode(Engine(target, drafter), CYCLE[:9], max_new_tokens=20).steps) == 20


@pytest.mark.parametrize("offset", [1, 2])
def test_earlier_layers_can_feed_the_heads(offset, targets):
    """hidden_state_offset k of the released code: its tuple of hidden states, counted k back from the last."""
    target = targets["llama"]
    heads = random_heads(target, prefix=False, offset=offset)
    drafter = Watched(target, heads, Dynamic(width=1, depth=1, total=1))
    decode(Engine(target, drafter, prefill_chunk=4), PROMPT, max_new_tokens=4)
    for tokens, tree in drafter.proposals[:-1]:
        with torch.inference_mode():
            states = target.model(torch.tensor([tokens[:-1]]), output_hidden_states=True).hidden_states
            root = target.model.get_input_embeddings()(torch.tensor(tokens[-1:]))
            inputs = torch.cat((states[-(offset + 1)][0, -1:], root), dim=1)
            assert tree.tokens.tolist() == [int(heads.logits(0, inputs[None], target)[0, 0].argmax())]


# -- shapes --------------------------------------------------------------------------------------------------------


def test_a_tree_deeper_than_the_heads_is_refused(targets):
    heads = random_heads(targets["llama"])
    with pytest.raises(InputError, match="tree depth is 4, but each level takes a head and there are 3"):
        HydraDrafter(targets["llama"], heads, Dynamic(depth=4))


def test_a_static_tree_is_cut_to_the_heads(targets):
    target = targets["llama"]
    drafter = HydraDrafter(target, random_heads(target), STATIC)
    steps = decode(Engine(target, drafter), PROMPT, max_new_tokens=8).steps
    assert steps[0].num_drafted == len([path for path in PATHS if len(path) <= NUM_HEADS])


def test_the_method_is_built_from_a_folder(targets, tmp_path):
    target = targets["llama"]
    heads = random_heads(target)
    heads.confidence = ConfidenceScale(floor=0.3, slope=0.2)
    save_heads(heads, tmp_path, target)
    fixed = build_drafter("hydra", target, {"draft": tmp_path, "width": 2, "depth": 2, "total": 3})
    assert fixed.shape == Dynamic(width=2, depth=2, total=3)
    by_cost = build_drafter("hydra", target, {"draft": str(tmp_path), "width": 3})
    assert isinstance(by_cost.shape, Auto)
    assert (by_cost.shape.level_rows, by_cost.shape.depth) == (3, NUM_HEADS)
    assert (by_cost.name, by_cost.confidence) == ("hydra", heads.confidence)
    static = build_drafter("hydra", target, {"draft": tmp_path, "tree": "static"})
    named = build_drafter("hydra", target, {"draft": tmp_path, "tree": "vicuna_7b_stage1"})
    assert (static.shape.depth, named.shape.depth) == (NUM_HEADS, NUM_HEADS)
    assert set(static.shape.paths) == {path for path in published_tree("mc_sim_7b_63") if len(path) <= NUM_HEADS}
    assert named.shape.paths != static.shape.paths
    settings = {"max_new_tokens": 20, "temperature": 0.7, "seed": 2}
    expected = oracle_generate(target.model, PROMPT, **settings)
    for drafter in (fixed, by_cost, static, named):
        assert decode(Engine(target, drafter), PROMPT, **settings).ids == expected
    assert by_cost.shape.costs is not None
    assert len(by_cost.shape.costs.draft_s) == NUM_HEADS + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": "chain"}, "unknown tree 'chain'"),
        ({"tree": "static", "width": 3}, "does not read width"),
        ({"depth": 4, "total": 8}, "tree depth is 4, but each level takes a head"),
        ({"depth": 9}, "tree depth is 9, but each level takes a head"),
        ({"total": 0}, "tree total is 0"),
        ({"length": 3}, "no option 'length'"),
    ],
)
def test_wrong_options_are_one_clear_line(options, message, targets, tmp_path):
    target = targets["llama"]
    save_heads(random_heads(target), tmp_path, target)
    with pytest.raises(InputError, match=message):
        build_drafter("hydra", target, {"draft": tmp_path, **options})


def test_missing_heads_are_one_clear_line(targets):
    with pytest.raises(InputError, match=r"hydra.*draft=PATH.*slipstream train hydra"):
        METHODS["hydra"].build(targets["llama"], {})


def test_slots_are_enough_for_every_tree(targets):
    target = targets["llama"]
    for shape in SHAPES.values():
        drafter = HydraDrafter(target, random_heads(target), shape)
        sizes = [step.num_drafted for step in Engine(target, drafter).generate(request(PROMPT, max_new_tokens=8))]
        assert 0 < max(sizes) < drafter.draft_slots
