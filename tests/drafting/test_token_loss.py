"""Part of the vocabulary stands for all of it: sums without bias, answers' tokens always in it."""

from __future__ import annotations

import pytest
import torch

from families import VOCAB_SIZE, build, prompt_ids
from slipstream.drafting.token_loss import LossVocabulary, all_logits, token_terms
from slipstream.errors import InputError
from slipstream.target.target import Target
from slipstream.training.data.dialogues import Dialogue

ANSWER = torch.tensor([50, 51])


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(build("llama", weight_std=0.25))


@pytest.fixture(scope="module")
def vocabulary(target) -> LossVocabulary:
    """Twelve frequent tokens and four drawn ones."""
    text = tuple(prompt_ids(30, seed=1))
    return LossVocabulary(target, [Dialogue(text, (True,) * 30)], 16)


def hidden(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sums_over_the_vocabulary_are_estimated_without_bias(target, vocabulary):
    states = hidden(3)
    whole = all_logits(target)(states).exp().sum(dim=-1)
    sums = torch.stack([vocabulary.drawn(ANSWER, seed)(states).exp().sum(dim=-1) for seed in range(3000)])
    error = sums.std(dim=0) / 3000**0.5
    assert ((sums.mean(dim=0) - whole).abs() < 4 * error).all()


def test_tokens_of_the_answers_are_always_there_as_they_are(target, vocabulary):
    states = hidden(1)
    plain = all_logits(target)(states)[0, ANSWER]
    for seed in range(5):
        drawn = vocabulary.drawn(ANSWER, seed)(states)[0]
        assert len(drawn) <= 18
        assert all(torch.isclose(drawn, one).any() for one in plain)


def test_a_seed_draws_the_same_tokens_again(vocabulary):
    states = hidden(2)
    first, again, other = (vocabulary.drawn(ANSWER, seed)(states) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_a_vocabulary_of_all_tokens_changes_nothing(target):
    every = LossVocabulary(target, [], 4 * VOCAB_SIZE).drawn(ANSWER, 0)
    states, counted = hidden(5), torch.ones(1, 4, dtype=torch.bool)
    part, whole = (
        token_terms(states[None, 1:], states[:-1], counted, logits, (1, 3)) for logits in (every, all_logits(target))
    )
    assert torch.allclose(part.loss, whole.loss)
    assert torch.equal(part.hits, whole.hits)


@pytest.mark.parametrize("faster", [True, False])
def test_a_part_is_in_float32_where_bfloat16_is_no_faster(faster, monkeypatch):
    monkeypatch.setattr("slipstream.drafting.token_loss.multiplies_faster_in_bfloat16", lambda device: faster)
    half = Target(build("llama", weight_std=0.25).to(torch.bfloat16))
    states = hidden(3).float()
    found = LossVocabulary(half, [], 4 * VOCAB_SIZE).drawn(ANSWER, 0)(states)
    weight = half.model.get_output_embeddings().weight.detach()
    exact = states @ weight.float().T
    assert torch.equal(found, exact) != faster
    assert torch.allclose(found, exact, atol=0.1)


def test_rows_that_do_not_count_neither_cost_nor_teach(target):
    fed = hidden(4)[None].requires_grad_()
    counted = torch.tensor([[True, False, True, False]])
    terms = token_terms(fed, hidden(4, seed=1), counted, all_logits(target), (1,))
    alone = token_terms(fed[:, ::2], hidden(4, seed=1)[::2], counted[:, ::2], all_logits(target), (1,))
    assert torch.allclose(terms.loss, alone.loss)
    terms.loss.sum().backward()
    assert fed.grad is not None
    assert fed.grad[0].abs().sum(dim=-1).gt(0).tolist() == counted[0].tolist()


def test_hits_are_ranks(target):
    fed, true = hidden(6), hidden(6, seed=1)
    hits = token_terms(fed[None], true, torch.ones(1, 6, dtype=torch.bool), all_logits(target), (1, 4, 10)).hits
    best = all_logits(target)(true).argmax(dim=-1)
    for index, top in enumerate((1, 4, 10)):
        expected = (all_logits(target)(fed).topk(top).indices == best[:, None]).any(dim=-1)
        assert torch.equal(hits[index, 0], expected)


def test_a_head_with_soft_capping_is_refused(family_model):
    with pytest.raises(InputError, match="leave it away"):
        LossVocabulary(Target(family_model("gemma2")), [], 16)
