"""A drafter whose vocabulary is a part of the target's: the skeletons name its columns, and output stays lossless."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from doubles import decode, request
from families import VOCAB_SIZE, build, prompt_ids
from oracle import oracle_generate
from slipstream.core.logits import ProcessingSettings
from slipstream.core.rules import DecodingRule, make_rule
from slipstream.core.sampling import SamplingSettings
from slipstream.drafting.base import Generation
from slipstream.drafting.drafter import ModelDrafter
from slipstream.drafting.expander import DraftLogits, Expander
from slipstream.drafting.growth import Frontier
from slipstream.drafting.shape import Auto, Chain, Dynamic, Shape
from slipstream.engine.engine import Engine
from slipstream.target.target import Target
from test_rejection import NUM_NEW, VOCAB, law, p_value, remembered
from test_rejection import PROMPT as REJECTION_PROMPT

PROMPT = prompt_ids(7, seed=4) * 3
SHAPES: dict[str, Shape] = {
    "tree": Dynamic(width=4, depth=3, total=14),
    "auto": Auto(Dynamic(width=3, depth=3, total=8)),
    "chain": Chain(length=4, threshold=0.0),
}


class Part(ModelDrafter):
    """The target itself, of whose tokens it knows only some, in an order of their own."""

    name = "part"

    def __init__(self, target: Target, shape: Shape, ids: Tensor) -> None:
        super().__init__(target, shape)
        self.ids = ids

    def expander(self, generation: Generation) -> Expander:
        return _PartExpander(self, generation)

    @property
    def draft_slots(self) -> int:
        return max(super().draft_slots, self.shape.most_rows)


class _PartExpander(Expander):
    def __init__(self, drafter: Part, generation: Generation) -> None:
        self._drafter, self._generation = drafter, generation

    def begin(self, shape: Shape) -> int:
        return shape.depth

    def expand(self, frontier: Frontier) -> DraftLogits:
        run, seen = self._generation, frontier.visible
        start = run.length + seen.shape[1] - seen.shape[0]
        positions = torch.full_like(frontier.tokens, run.length + frontier.depth)
        logits = run.target.forward(frontier.tokens, positions, seen, run.cache, start=start).logits[0]
        return DraftLogits(logits[:, self._drafter.ids], self._drafter.ids)


def some_ids(count: int, seed: int = 0) -> Tensor:
    return torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))[:count]


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("count", [2, 30, VOCAB_SIZE])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_those_of_plain_decoding(shape, count, temperature, target):
    settings = {"max_new_tokens": 24, "temperature": temperature, "seed": 3}
    drafter = Part(target, SHAPES[shape], some_ids(count))
    result = decode(Engine(target, drafter), PROMPT, **settings)
    assert result.ids == oracle_generate(target.model, PROMPT, **settings)
    if count == VOCAB_SIZE and shape != "auto":
        assert result.num_accepted >= 12, "it knows all the target knows, noise included"
    elif count == 30 and shape == "tree":
        assert 0 < result.num_accepted < len(result.ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_only_known_tokens_are_drafted_and_the_order_of_columns_means_nothing(shape, temperature, target):
    ids = some_ids(20)
    settings = {"max_new_tokens": 24, "temperature": temperature, "seed": 3}
    steps = [
        decode(Engine(target, Part(target, SHAPES[shape], one)), PROMPT, **settings).steps for one in (ids, ids.flip(0))
    ]
    counts = [[(step.num_drafted, step.num_accepted) for step in one] for one in steps]
    assert counts[0] == counts[1]


def rule(verification: str, temperature: float = 1.0) -> DecodingRule:
    processing = ProcessingSettings(prompt_length=4, max_length=99, temperature=temperature)
    made = make_rule(processing, SamplingSettings(seed=1, verification=verification), VOCAB_SIZE, torch.device("cpu"))
    made.begin(7)
    return made


@pytest.mark.parametrize("verification", ["coupled", "rejection"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_children_are_those_of_the_whole_vocabulary_with_the_rest_ruled_out(temperature, verification):
    """The same noise is read for a token, whatever column it stands in."""
    ids = some_ids(20)
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(5))
    known = torch.full_like(logits, -torch.inf).index_copy(1, ids, logits[:, ids])
    part = DraftLogits(logits[:, ids], ids).children(rule(verification, temperature), 2, 6, 3)
    whole = DraftLogits(known).children(rule(verification, temperature), 2, 6, 3)
    assert torch.equal(part.tokens, whole.tokens)
    torch.testing.assert_close(part.log_confidence, whole.log_confidence)
    assert DraftLogits(logits[:, ids], ids).children(rule(verification), 1, 50, 3).tokens.shape == (3, 20)


def test_a_drawn_token_and_its_distribution_are_named_in_the_targets_vocabulary():
    ids, logits = some_ids(20), torch.randn(1, 20, generator=torch.Generator().manual_seed(5))
    drawn = DraftLogits(logits, ids).draw(rule("rejection"), 1, VOCAB_SIZE)
    assert drawn.q is not None
    assert drawn.q.shape == (1, VOCAB_SIZE)
    assert torch.equal(drawn.q[0, ids], logits.double().softmax(dim=-1)[0])
    assert float(drawn.q.sum()) == pytest.approx(1.0)
    assert int(drawn.token) in ids.tolist()
    assert float(drawn.q[0, drawn.token]) == pytest.approx(float(drawn.log_confidence.exp()))


def test_one_answer_serves_all_nodes_of_a_level():
    logits = torch.randn(1, 9)
    one = DraftLogits(logits).children(rule("rejection"), 1, 3, 4)
    each = DraftLogits(logits.expand(4, -1)).children(rule("rejection"), 1, 3, 4)
    assert torch.equal(one.tokens, each.tokens)
    assert torch.equal(one.log_confidence, each.log_confidence)


@pytest.mark.parametrize("shape", [Chain(length=2, threshold=0.0), Dynamic(width=2, depth=2, total=3)])
def test_rejection_follows_the_targets_law(shape):
    """Every text comes as often as the target says, though one of its tokens is never drafted."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    target = Target(build("llama", vocab_size=VOCAB, weight_std=0.4, **sizes))
    engine = Engine(target, Part(target, shape, torch.tensor([3, 1, 0, 4])))
    one, texts, memory = request(REJECTION_PROMPT, max_new_tokens=NUM_NEW, temperature=1.0), [], {}
    with remembered(target, memory):
        for seed in range(600):
            sampled = replace(one, sampling=SamplingSettings(seed=seed, verification="rejection"))
            texts.append(tuple(token for step in engine.generate(sampled) for token in step.token_ids))
    assert p_value(texts, law(target.model, {"temperature": 1.0})) > 1e-3
    assert any(2 in text for text in texts)
