"""Log-probabilities of emitted tokens: the model's own, whatever was drafted and however tokens were chosen."""

from __future__ import annotations

import json

import pytest
import torch

import slipstream
from doubles import CONFIGURATIONS, Scripted, configured, decode, random_tree, right_behind_wrong
from families import VOCAB_SIZE, prompt_ids
from oracle import oracle_generate
from slipstream.core.logprobs import token_logprobs
from slipstream.engine.engine import Engine
from slipstream.errors import InputError
from slipstream.methods.plain import PlainDrafter
from slipstream.target.target import Target

PROMPT = prompt_ids(7, seed=4) * 3
NUM_TOKENS = 12
HOW = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.7, "seed": 3, "top_k": 9},
    "penalised": {"temperature": 0.0, "repetition_penalty": 1.5},
}


@pytest.fixture(scope="module")
def target(family_model) -> Target:
    return Target(family_model("llama"))


def check(result, expected: torch.Tensor, num_top: int, error: float = 1e-9) -> None:
    """expected: [tokens, vocab] log-probabilities."""
    found = [one for step in result.steps for one in step.logprobs]
    assert [one.token_id for one in found] == result.ids
    assert all(len(step.logprobs) == len(step.token_ids) for step in result.steps)
    expected = expected.detach()
    best = expected.topk(num_top, dim=-1)
    for place, one in enumerate(found):
        assert one.logprob == pytest.approx(float(expected[place, one.token_id]), abs=error)
        assert [token for token, _ in one.top] == best.indices[place].tolist()
        assert [value for _, value in one.top] == pytest.approx(best.values[place].tolist(), abs=error)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["plain", "prompt-lookup", "lookahead", "layer-skip-dynamic", "scattered", "tree"])
def test_they_are_those_of_one_pass_over_the_whole_text(name, how, target):
    """Before temperature, truncation and penalties, equally for accepted tokens and for the one after them."""
    settings = {**HOW[how], "max_new_tokens": NUM_TOKENS}
    truth = oracle_generate(target.model, PROMPT, **settings)
    scripts = {"scattered": right_behind_wrong, "tree": random_tree}
    drafter = configured(name, target) if name in CONFIGURATIONS else Scripted(scripts[name], truth)
    result = decode(Engine(target, drafter), PROMPT, **settings, logprobs=5)
    assert result.ids == truth
    logits = target.model(torch.tensor([[*PROMPT, *truth[:-1]]])).logits[0, len(PROMPT) - 1 :]
    check(result, logits.log_softmax(dim=-1), 5)
    assert result.num_accepted > 0 or name not in scripts


def test_they_are_the_output_logits_of_transformers(target):
    ids = torch.tensor([PROMPT])
    theirs = target.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    truth = theirs.sequences[0, len(PROMPT) :].tolist()
    result = decode(Engine(target, Scripted(random_tree, truth)), PROMPT, max_new_tokens=NUM_TOKENS, logprobs=3)
    assert result.ids == truth
    check(result, torch.cat(theirs.logits).log_softmax(dim=-1), 3, error=1e-6)  # which are float32


def test_an_answer_cut_within_a_draft_has_one_for_each_of_its_tokens(target):
    truth = oracle_generate(target.model, PROMPT, max_new_tokens=NUM_TOKENS)
    end = next(token for token in truth[3:] if token not in truth[:3])
    settings = {"max_new_tokens": NUM_TOKENS, "eos_token_ids": [end], "logprobs": 0}
    result = decode(Engine(target, Scripted(right_behind_wrong, truth)), PROMPT, **settings)
    assert result.finish_reason == "eos"
    found = [one for step in result.steps for one in step.logprobs]
    assert [one.token_id for one in found] == result.ids
    assert all(one.top == () for one in found)


def test_nothing_is_reported_unless_it_was_asked_for(target):
    assert all(step.logprobs == () for step in decode(Engine(target, PlainDrafter()), PROMPT).steps)


@pytest.mark.parametrize("count", [-1, VOCAB_SIZE + 1, True, 2.0])
def test_a_bad_number_of_alternatives_is_refused(count, target):
    with pytest.raises(InputError, match=f"logprobs is .*; it must be a whole number from 0 to {VOCAB_SIZE}"):
        decode(Engine(target, PlainDrafter()), PROMPT, logprobs=count)


def test_models_report_them_in_steps_and_in_the_output(target):
    model = slipstream.load(target.model, "prompt-lookup")
    steps, stream = [], model.stream(PROMPT, max_new_tokens=6, temperature=0.0, logprobs=2)
    try:
        while True:
            steps.append(next(stream))
    except StopIteration as end:
        output = end.value
    assert output.logprobs == [one for step in steps for one in step.logprobs]
    assert [one.token_id for one in output.logprobs] == output.token_ids
    record = json.loads(json.dumps(output.to_dict()))
    assert record["logprobs"][0]["top"][0] == list(output.logprobs[0].top[0])
    without = model.generate(PROMPT, max_new_tokens=6, temperature=0.0)
    assert without.token_ids == output.token_ids
    assert without.logprobs is None
    assert "logprobs" not in without.to_dict()


def test_a_token_without_probability_has_minus_infinity():
    (found,) = token_logprobs(torch.tensor([[0.0, -torch.inf, 0.0]]), [1], 1)
    assert found.logprob == -torch.inf
    assert found.top[0][1] == pytest.approx(-0.6931472)
