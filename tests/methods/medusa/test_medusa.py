"""Medusa never changes a token, and its heads stand at the token before the root."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from doubles import decode, request
from families import CONTEXT, prompt_ids
from methods.medusa.medusa_reference import cycling_pair, reference_draft
from methods.watching import Watching
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.drafter import head_shape
from slipstream.drafting.published_trees import TREES, expand, published_tree
from slipstream.drafting.shape import Auto, Dynamic, Static
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.medusa.checkpoint import save_heads
from slipstream.methods.medusa.drafter import MedusaDrafter
from slipstream.methods.medusa.head import MedusaHeads, MedusaSizes
from slipstream.methods.registry import METHODS, build_drafter
from slipstream.target.target import Target

FAMILIES = ("llama", "qwen2", "gemma2", "mistral", "gpt2", "longrope", "opt", "mixtral", "cohere")
PROMPT = prompt_ids(7, seed=4) * 3
NUM_TOKENS, NUM_HEADS = 14, 3
STATIC = Static(published_tree("mc_sim_7b_63"))  # one level deeper than there are heads
SHAPES = {"dynamic": Dynamic(width=6, depth=3, total=24), "static": STATIC}


def random_heads(target: Target, *, own: bool = False, seed: int = 0) -> MedusaHeads:
    """Heads with weights large enough that the feature decides their drafts."""
    vocab_size = target.vocab_size if own else None
    heads = MedusaHeads(
        MedusaSizes(num_heads=NUM_HEADS, hidden_size=target.config.hidden_size, num_layers=2, vocab_size=vocab_size)
    )
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.4)
    return heads.to(target.device, target.dtype).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def targets(family_model) -> dict[str, Target]:
    return {name: Target(family_model(name)) for name in FAMILIES}


class Watched(Watching, MedusaDrafter):
    """Keeps what it proposed."""


# -- lossless ------------------------------------------------------------------------------------------------------


@in_both_sizes("temperature", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_plain_decoding(name, shape, temperature, targets):
    target = targets[name]
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": temperature, "seed": 5}
    drafter = MedusaDrafter(target, random_heads(target, own=name == "qwen2"), SHAPES[shape])
    expected = oracle_generate(target.model, PROMPT, **settings)
    assert decode(Engine(target, drafter), PROMPT, **settings).ids == expected


@in_both_sizes("budget", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt_length", [1, 2, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_budgets_and_short_prompts_are_exact(shape, prompt_length, budget, targets):
    target, prompt = targets["llama"], prompt_ids(prompt_length, seed=3)
    drafter = MedusaDrafter(target, random_heads(target), SHAPES[shape])
    result = decode(Engine(target, drafter, prefill_chunk=2), prompt, max_new_tokens=budget)
    assert result.ids == oracle_generate(target.model, prompt, max_new_tokens=budget)
    assert sum(step.num_accepted for step in result.steps) <= budget


@both_sizes
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_context_limit_is_exact(shape, name, targets):
    target, prompt = targets[name], prompt_ids(CONTEXT - 5)
    result = decode(Engine(target, MedusaDrafter(target, random_heads(target), SHAPES[shape])), prompt)
    assert (result.ids, result.finish_reason) == (oracle_generate(target.model, prompt, max_new_tokens=5), "context")


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_budgets_and_ends_are_exact(shape, budget, targets):
    target = targets["qwen2"]
    settings = {"max_new_tokens": budget, "temperature": 1.3, "seed": 11, "repetition_penalty": 1.4}
    expected = oracle_generate(target.model, PROMPT, **settings)
    end = {"eos_token_ids": (expected[len(expected) // 2],)}
    engine = Engine(target, MedusaDrafter(target, random_heads(target), SHAPES[shape]))
    assert decode(engine, PROMPT, **settings).ids == expected
    assert decode(engine, PROMPT, **settings, **end).ids == oracle_generate(target.model, PROMPT, **settings, **end)


@pytest.mark.parametrize("shape", SHAPES)
def test_rejection_verification_follows_the_target(shape, targets):
    """With a target that is sure of every token the published rule has one outcome, the greedy one."""
    target = targets["llama"]
    drafter = MedusaDrafter(target, random_heads(target), SHAPES[shape])
    one = request(PROMPT, max_new_tokens=NUM_TOKENS, temperature=1e-3)
    one = replace(one, sampling=SamplingSettings(seed=1, verification="rejection"))
    tokens = [token for step in Engine(target, drafter).generate(one) for token in step.token_ids]
    assert tokens == oracle_generate(target.model, PROMPT, max_new_tokens=NUM_TOKENS)


def test_generations_do_not_touch_each_other(targets):
    target = targets["llama"]
    engine = Engine(target, MedusaDrafter(target, random_heads(target), SHAPES["dynamic"]))
    first = decode(engine, PROMPT, max_new_tokens=9)
    stream = engine.generate(request(PROMPT, max_new_tokens=9, temperature=1.0))
    next(stream)
    second = decode(engine, PROMPT, max_new_tokens=9)
    stream.close()
    assert [s.num_accepted for s in first.steps] == [s.num_accepted for s in second.steps]
    assert first.ids == second.ids


def test_trees_sized_by_cost_change_no_token(targets):
    target = targets["llama"]
    drafter = MedusaDrafter(target, random_heads(target), Auto(Dynamic(width=4, depth=3, total=10)))
    result = decode(Engine(target, drafter), PROMPT, max_new_tokens=40)
    assert result.ids == oracle_generate(target.model, PROMPT, max_new_tokens=40)
    assert result.steps[0].num_drafted == 7, "width + depth until more is known"


# -- right drafts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "cohere"])
def test_drafts_are_the_heads_own_at_the_token_before_the_root(name, chunk, targets):
    """Against heads run one by one on features of the whole text, without the engine."""
    target = targets[name]
    heads = random_heads(target, seed=2)
    tensors = {
        f"{i}.{j}.linear.{part}": getattr(heads, part)[i]
        for i in range(NUM_HEADS)
        for j in range(2)
        for part in ("weight", "bias")
    }
    drafter = Watched(target, heads, Dynamic(width=1, depth=3, total=3))
    decode(Engine(target, drafter, prefill_chunk=chunk), PROMPT, max_new_tokens=6)
    assert len(drafter.proposals) >= 4
    for tokens, tree in drafter.proposals:
        assert tree.tokens.tolist() == reference_draft(tensors, 2, target, tokens, tree.num_nodes)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_all_nodes_of_a_depth_have_the_same_candidates(temperature, targets):
    target = targets["llama"]
    drafter = Watched(target, random_heads(target), STATIC)
    decode(Engine(target, drafter), PROMPT, max_new_tokens=8, temperature=temperature)
    _, tree = drafter.proposals[0]
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    for node, parent in enumerate(tree.parents.tolist()):
        paths[node] = (*paths[parent], node)
    first_of_parent: dict[int, list[int]] = {}
    for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)):
        first_of_parent.setdefault(parent, []).append(token)
        assert len(paths[node]) == tree.depth[node]
    for depth in (2, 3):
        families = [
            tokens for parent, tokens in first_of_parent.items() if parent >= 0 and tree.depth[parent] == depth - 1
        ]
        longest = max(families, key=len)
        assert len(families) > 1
        assert all(tokens == longest[: len(tokens)] for tokens in families)


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize("shape", [Dynamic(width=1, depth=4, total=4), Dynamic(width=4, depth=4, total=12), STATIC])
def test_heads_that_know_the_text_are_always_accepted(shape, chunk):
    """Fails on any shift of heads, features or depths."""
    target, heads, cycle = cycling_pair()
    engine = Engine(target, MedusaDrafter(target, heads, shape), prefill_chunk=chunk)
    result = decode(engine, cycle[:5], max_new_tokens=41)
    assert result.ids == cycle[5:46]
    assert [len(step.token_ids) for step in result.steps] == [5] * 8 + [1]


def test_heads_one_depth_late_are_noticed():
    """The test above is worth something."""
    target, heads, cycle = cycling_pair()
    for part in heads.parameters():
        part.data = part.data.roll(1, dims=0)
    result = decode(Engine(target, MedusaDrafter(target, heads, Dynamic(width=1, depth=4, total=4))), cycle[:5])
    assert sum(step.num_accepted for step in result.steps) == 0


# -- trees ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_published_trees_have_63_nodes_with_their_parents(name):
    paths = published_tree(name)
    assert len(paths) == len(set(paths)) == 63
    assert {path[:-1] for path in paths} <= {(), *paths}
    assert Static(paths).depth == (3 if name == "vicuna_33b_stage1" else 4)


def test_the_default_tree_is_the_released_list():
    """Its nodes of depth 3 and 4, and the numbers of the others, as the list names them."""
    paths = published_tree("mc_sim_7b_63")
    deep = {"".join(map(str, path)) for path in paths if len(path) > 2}
    expected = "000 001 002 003 004 005 006 007 008 009 010 011 012 020 021 030 040 050 060 070 100 101 200 0000 0001"
    assert deep == set(expected.split())
    assert [sum(path[0] == first and len(path) == 2 for path in paths) for first in range(10)] == [
        *(10, 7, 3, 2, 1, 1, 1, 1, 1, 1)
    ]


def test_numbers_of_children_become_paths():
    assert expand("2 02 1") == ((0,), (1,), (1, 0), (1, 1), (1, 0, 0))


# -- options -------------------------------------------------------------------------------------------------------


def test_the_method_is_built_from_a_folder(targets, tmp_path):
    target = targets["llama"]
    save_heads(random_heads(target), tmp_path, target)

    def built(**options: object) -> MedusaDrafter:
        drafter = build_drafter("medusa", target, {"draft": tmp_path, **options})
        assert isinstance(drafter, MedusaDrafter)
        return drafter

    assert isinstance(built().shape, Auto), "sized by measured cost unless a total is given"
    assert built().shape.depth == NUM_HEADS
    assert built(width=2, depth=2, total=5).shape == Dynamic(width=2, depth=2, total=5)
    static = built(tree="static")
    assert (static.shape.depth, static.shape.most_nodes) == (3, 61), "cut to the levels there are heads for"
    assert built(tree="zephyr_stage2").shape.paths != static.shape.paths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": "chain"}, "unknown tree 'chain'; choose from dynamic, static, mc_sim_7b_63"),
        ({"tree": "zephyr_stage1"}, "Did you mean 'zephyr_stage2'"),
        ({"tree": "static", "width": 3}, "medusa with tree='static' does not read width"),
        ({"depth": 4, "total": 8}, "tree depth is 4, but each level takes a head and there are 3"),
        ({"width": 0, "total": 8}, "tree width is 0"),
    ],
)
def test_bad_trees_are_one_clear_line(options, message, targets, tmp_path):
    target = targets["llama"]
    save_heads(random_heads(target), tmp_path, target)
    with pytest.raises(InputError, match=message):
        build_drafter("medusa", target, {"draft": tmp_path, **options})


def test_missing_heads_are_one_clear_line(targets):
    with pytest.raises(InputError, match=r"medusa.*draft=PATH.*slipstream train medusa"):
        METHODS["medusa"].build(targets["llama"], {})


def test_large_targets_get_one_level_a_head():
    class Large:
        class model:  # noqa: N801 (stands for the attribute)
            @staticmethod
            def num_parameters() -> int:
                return 7_000_000_000

    shape = head_shape("medusa", Large, 5, {"total": 63})  # type: ignore[arg-type]
    assert (shape.width, shape.depth, shape.total) == (10, 5, 63)


def test_slots_are_enough_for_every_tree(targets):
    target = targets["llama"]
    for shape in SHAPES.values():
        drafter = MedusaDrafter(target, random_heads(target), shape)
        steps = decode(Engine(target, drafter), PROMPT, max_new_tokens=8).steps
        assert max(step.num_drafted for step in steps) < drafter.draft_slots
