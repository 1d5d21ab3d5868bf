"""EAGLE-3 drafters never change a token, and draft what the head says of the target's states at the right positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from doubles import decode, request
from families import VOCAB_SIZE, build, prompt_ids
from methods.eagle3.eagle3_reference import true_states
from methods.eagle3.published import PUBLISHED, eagle3_target
from methods.watching import Watching
from oracle import oracle_generate
from pass_sizes import both_sizes, in_both_sizes
from slipstream.core.rules import CoupledRule
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.expander import DraftLogits
from slipstream.drafting.growth import Frontier
from slipstream.drafting.published_trees import EAGLE_1
from slipstream.drafting.shape import Auto, Chain, Dynamic, Static
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.eagle.head import HeadSizes
from slipstream.methods.eagle3.checkpoint import load_head, save_head
from slipstream.methods.eagle3.drafter import Eagle3Drafter, Eagle3Expander
from slipstream.methods.eagle3.head import Eagle3Head, Eagle3Sizes, default_states
from slipstream.methods.registry import METHODS, build_drafter
from slipstream.target.target import Target

FAMILIES = ("llama", "qwen3", "gemma2", "mistral", "gpt2", "longrope", "gpt_oss")
PROMPT = prompt_ids(7, seed=4) * 3
NUM_TOKENS = 14
WIDE = Dynamic(width=6, depth=3, total=30)
SHAPES = {"dynamic": WIDE, "static": Static(EAGLE_1), "chain": Chain(length=4, threshold=0.0)}


def random_head(target: Target, seed: int = 0, drafted: int | None = None) -> Eagle3Head:
    """A head of the target's sizes with weights large enough that context decides its drafts.

    drafted: tokens of its vocabulary; None: three of four of the target's.
    """
    layer = replace(HeadSizes.like(target), biases=frozenset())
    drafted = 3 * target.vocab_size // 4 if drafted is None else drafted
    sizes = Eagle3Sizes(
        layer=layer,
        target_size=layer.hidden_size,
        states=default_states(target.num_layers),
        draft_vocab_size=drafted,
        own_lm_head=True,
    )
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randperm(target.vocab_size, generator=rng)[:drafted].sort().values
    head = Eagle3Head(sizes, ids if drafted < target.vocab_size else None)
    with torch.no_grad():
        for parameter in head.parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(noise * 0.4 if parameter.dim() > 1 else 1 + noise * 0.2)
    return head.place(target.device, target.dtype).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def targets(family_model) -> dict[str, Target]:
    return {name: Target(family_model(name)) for name in FAMILIES}


@pytest.fixture(scope="module")
def deep() -> Target:
    """Of eight layers, as the published heads are for."""
    return eagle3_target()


class Watched(Watching, Eagle3Drafter):
    """Keeps what it proposed."""


# -- lossless --------------------------------------------------------------------------------------------------------


@in_both_sizes("temperature", [0.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_plain_decoding(name, shape, temperature, targets):
    target = targets[name]
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": temperature, "seed": 5}
    expected = oracle_generate(target.model, PROMPT, **settings)
    drafter = Eagle3Drafter(target, random_head(target), SHAPES[shape])
    assert decode(Engine(target, drafter), PROMPT, **settings).ids == expected


@in_both_sizes("budget", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt_length", [1, 2, 9])
def test_budgets_and_short_prompts_are_exact(prompt_length, budget, targets):
    target, prompt = targets["llama"], prompt_ids(prompt_length, seed=3)
    engine = Engine(target, Eagle3Drafter(target, random_head(target), WIDE), prefill_chunk=2)
    result = decode(engine, prompt, max_new_tokens=budget)
    assert result.ids == oracle_generate(target.model, prompt, max_new_tokens=budget)


@both_sizes
def test_the_context_limit_is_exact():
    target = Target(build("llama", max_position_embeddings=40))
    drafter = Eagle3Drafter(target, random_head(target), WIDE)
    result = decode(Engine(target, drafter), PROMPT, max_new_tokens=60)
    assert (len(PROMPT) + len(result.ids), result.finish_reason) == (40, "context")


@pytest.mark.parametrize("shape", SHAPES)
def test_rejection_verification_follows_the_target(shape, targets):
    """With a target that is sure of every token the published rule has one outcome, the greedy one."""
    target = targets["llama"]
    expected = oracle_generate(target.model, PROMPT, max_new_tokens=NUM_TOKENS)
    drafter = Eagle3Drafter(target, random_head(target), SHAPES[shape])
    one = request(PROMPT, max_new_tokens=NUM_TOKENS, temperature=1e-3)
    one = replace(one, sampling=SamplingSettings(seed=1, verification="rejection"))
    steps = list(Engine(target, drafter).generate(one))
    assert [token for step in steps for token in step.token_ids] == expected


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_next_turn_of_a_chat_is_exact(temperature, targets):
    """Its first part is kept: the head runs over kept states instead of new ones."""
    target = targets["llama"]
    engine = Engine(target, Eagle3Drafter(target, random_head(target), WIDE))
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": temperature, "seed": 5}
    first = decode(engine, PROMPT, **settings).ids
    turn = [*PROMPT, *first, *prompt_ids(4, seed=9)]
    assert decode(engine, turn, **settings).ids == oracle_generate(target.model, turn, **settings)


def test_a_shape_sized_by_cost_is_exact(targets):
    target = targets["llama"]
    drafter = Eagle3Drafter(target, random_head(target), Auto(Dynamic(width=4, depth=3, total=10)))
    expected = oracle_generate(target.model, PROMPT, max_new_tokens=NUM_TOKENS)
    assert decode(Engine(target, drafter), PROMPT, max_new_tokens=NUM_TOKENS).ids == expected


# -- right drafts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("name", PUBLISHED)
def test_drafts_are_the_heads_own_on_the_whole_text(name, chunk, deep, tmp_path):
    """Every kind of head, against every step recomputed from the first token, without a cache and the engine."""
    one = PUBLISHED[name]
    drafter = Watched(deep, load_head(one.write(tmp_path), deep), Dynamic(width=1, depth=3, total=3))
    answer = decode(Engine(deep, drafter, prefill_chunk=chunk), PROMPT, max_new_tokens=5)
    assert answer.ids == oracle_generate(deep.model, PROMPT, max_new_tokens=5)
    assert len(drafter.proposals) >= 2
    twin = one.reference()
    for tokens, tree in drafter.proposals[:3]:
        drafted = tree.tokens.tolist()
        assert drafted == twin.draft(deep, tokens, len(drafted))


def test_the_cache_holds_the_accepted_tokens_only(deep, tmp_path):
    """Of every layer of a head that has two: what one pass over the committed text would have left."""
    one = PUBLISHED["speculators, Qwen3"]
    head = load_head(one.write(tmp_path), deep)
    drafter = Watched(deep, head, Dynamic(width=20, depth=3, total=60))
    result = decode(Engine(deep, drafter, prefill_chunk=4), PROMPT, max_new_tokens=30)
    assert max(step.num_accepted for step in result.steps) >= 1, "no branch was ever accepted: the test shows nothing"
    tokens, cache = drafter.proposals[-1][0], drafter.drafting.expander.cache
    n = len(tokens) - 1
    assert cache.length == n
    fresh = head.new_cache(deep.device, None)
    fresh.begin(0, torch.arange(n))
    with torch.inference_mode():
        fused = head.fuse(true_states(deep, tokens[:-1], one.states).flatten(1))
        embeddings = deep.model.get_input_embeddings()(torch.tensor(tokens[1:]))
        head(embeddings[None], fused[None], torch.arange(n)[None], torch.ones(n, n).tril().bool()[None, None], fresh)
    assert len(cache.layers) == 2
    for kept, expected in zip(cache.layers, fresh.layers, strict=True):
        torch.testing.assert_close(kept.keys[:, :, :n], expected.keys[:, :, :n], rtol=0, atol=1e-6)
        torch.testing.assert_close(kept.values[:, :, :n], expected.values[:, :, :n], rtol=0, atol=1e-6)


def test_rows_of_a_tree_see_the_text_and_their_ancestors_alone(deep, tmp_path, monkeypatch):
    """The head's output at every node that was run, against the twin's on the text and the node's own path."""
    one, frontiers, made = PUBLISHED["SafeAILab"], [], []
    expand = Eagle3Expander.expand

    def noting(self: Eagle3Expander, frontier: Frontier) -> DraftLogits:
        logits = expand(self, frontier)
        frontiers.append(frontier)
        made.append(self._outputs)
        return logits

    monkeypatch.setattr(Eagle3Expander, "expand", noting)
    drafter = Watched(deep, load_head(one.write(tmp_path), deep), Dynamic(width=3, depth=3, total=39))
    decode(Engine(deep, drafter), PROMPT, max_new_tokens=4)
    outputs = made[2]
    paths: list[list[int]] = [[]]
    for frontier in frontiers[1:3]:  # of the first tree, without its root
        paths += [
            [*paths[row], token]
            for row, token in zip(frontier.parent_rows.tolist(), frontier.tokens.tolist(), strict=True)
        ]
    tokens, twin = drafter.proposals[0][0], one.reference()
    assert len(paths) == len(outputs) == 7
    assert max(map(len, paths)) == 2
    expected = torch.cat([twin.fed_back(twin.after(deep, tokens, path)) for path in paths])
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_drafts_are_of_the_draft_vocabulary_and_named_by_the_targets_ids(targets):
    target = targets["llama"]
    head = random_head(target, drafted=9)
    drafter = Watched(target, head, WIDE)
    decode(Engine(target, drafter), PROMPT, max_new_tokens=8)
    known = set(head.ids.tolist())
    drafted = {token for _, tree in drafter.proposals for token in tree.tokens.tolist()}
    assert drafted <= known
    assert len(drafted) > 3


def test_the_noise_of_sampling_is_read_at_the_targets_ids(targets, monkeypatch):
    """A head that says the same of all tokens drafts the token of its vocabulary that the noise prefers."""
    target = targets["llama"]
    head = random_head(target, drafted=9)
    head.lm_head.weight.zero_()
    asked: list[torch.Tensor] = []
    children = CoupledRule.children

    def noting(self: CoupledRule, logits: Any, depth: int, k: int, ids: Any = None) -> Any:
        asked.append(ids)
        return children(self, logits, depth, k, ids)

    monkeypatch.setattr(CoupledRule, "children", noting)
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": 50.0, "seed": 2}  # the target is as undecided
    drafter = Eagle3Drafter(target, head, Dynamic(width=1, depth=1, total=1))
    result = decode(Engine(target, drafter), PROMPT, **settings)
    assert result.ids == oracle_generate(target.model, PROMPT, **settings)
    assert all(torch.equal(ids, head.ids) for ids in asked)
    drafted = [token in head.ids.tolist() for token in result.ids[:-1]]
    assert sum(step.num_accepted for step in result.steps) >= sum(drafted) * 0.6, "the noise would have decided"


def test_generations_do_not_touch_each_other(targets):
    target = targets["llama"]
    engine = Engine(target, Eagle3Drafter(target, random_head(target), WIDE))
    first = decode(engine, PROMPT, max_new_tokens=9)
    stream = engine.generate(request(PROMPT, max_new_tokens=9, temperature=1.0))
    next(stream)
    second = decode(engine, PROMPT, max_new_tokens=9)
    stream.close()
    assert [s.num_accepted for s in first.steps] == [s.num_accepted for s in second.steps]
    assert first.ids == second.ids


# -- readings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "states", "feedback"), [
    ({"layer_shift": -1}, (1, 3, 4), False),
    ({"layer_shift": 1, "norm_feedback": True}, (3, 5, 6), True),
])  # fmt: skip
def test_a_reading_is_drafted_with(options, states, feedback, deep, tmp_path):
    one = PUBLISHED["SafeAILab"]
    sizes = {"width": 1, "depth": 3, "total": 3}
    drafter = build_drafter("eagle3", deep, {"draft": one.write(tmp_path), **sizes, **options})
    watched = Watched(deep, drafter.head, drafter.shape)
    answer = decode(Engine(deep, watched), PROMPT, max_new_tokens=4)
    assert answer.ids == oracle_generate(deep.model, PROMPT, max_new_tokens=4)
    twin = replace(one.reference(), states=states, norm_feedback=feedback)
    tokens, tree = watched.proposals[0]
    assert tree.tokens.tolist() == twin.draft(deep, tokens, 3)


def test_other_plausible_readings_are_named(deep, tmp_path):
    drafter = build_drafter("eagle3", deep, {"draft": PUBLISHED["SafeAILab"].write(tmp_path)})
    found = drafter.other_readings()
    assert len(found) == 5
    assert {"layer_shift": 0, "norm_feedback": True} in found
    assert {"layer_shift": 1, "norm_feedback": False} in found
    assert {"layer_shift": 0, "norm_feedback": False} not in found


# -- options ---------------------------------------------------------------------------------------------------------


def test_the_method_is_built_from_a_folder(targets, tmp_path):
    target = targets["llama"]
    save_head(random_head(target), tmp_path, target)
    dynamic = build_drafter("eagle3", target, {"draft": tmp_path, "width": 2, "total": 7})
    assert (dynamic.name, dynamic.shape) == ("eagle3", Dynamic(width=2, depth=5, total=7))
    static = build_drafter("eagle3", target, {"draft": str(tmp_path), "tree": "static"})
    assert (static.shape.most_nodes, static.shape.depth) == (25, 5)
    chain = build_drafter("eagle3", target, {"draft": tmp_path, "tree": "chain", "length": 4})
    assert (chain.shape.kind, chain.shape.length) == ("chain", 4)
    assert type(build_drafter("eagle3", target, {"draft": tmp_path}).shape) is Auto


WRONG = [
    ({"tree": "bush"}, "unknown tree 'bush'"),
    ({"tree": "static", "width": 3}, "tree='static' does not read width"),
    ({"length": 3}, "tree='dynamic' does not read length"),
    ({"layer_shift": "much"}, "layer_shift is 'much'"),
    ({"layer_shift": 9}, "has layers 0 to"),
    ({"norm_feedback": "yes"}, "norm_feedback is 'yes'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_that_make_no_sense_are_one_clear_line(options, message, targets, tmp_path):
    target = targets["llama"]
    save_head(random_head(target), tmp_path, target)
    with pytest.raises(InputError, match=message):
        build_drafter("eagle3", target, {"draft": tmp_path, **options})


def test_a_missing_head_is_one_clear_line(targets):
    with pytest.raises(InputError, match=r"eagle3.*draft=PATH.*slipstream train eagle3"):
        METHODS["eagle3"].build(targets["llama"], {})


def test_a_vocabulary_smaller_than_a_tree_is_wide_is_exact(targets):
    target = targets["llama"]
    assert target.vocab_size == VOCAB_SIZE
    for shape in SHAPES.values():
        drafter = Eagle3Drafter(
            target, random_head(target, drafted=4), shape if shape is not SHAPES["static"] else shape.within(4)
        )
        expected = oracle_generate(target.model, PROMPT, max_new_tokens=8)
        assert decode(Engine(target, drafter), PROMPT, max_new_tokens=8).ids == expected
