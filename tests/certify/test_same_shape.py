"""Plain decoding in the shape of the method's passes gives its hidden states, bit for bit, in any dtype."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat

import pytest
import torch

from certify.certify_doubles import DTYPES, NUM_NEW, certify, plain_text, target_of
from doubles import CONFIGURATIONS, Scripted, configured, decode, random_tree
from families import CONTEXT, FAMILIES, prompt_ids
from slipstream.certify.identity import compare
from slipstream.certify.options import Warping
from slipstream.certify.recording import ONE_ROW, PassShape, record
from slipstream.certify.reference import Reference
from slipstream.certify.requests import GREEDY, make_request
from slipstream.core.sampling import SamplingSettings
from slipstream.engine.engine import Engine
from slipstream.methods.plain import PlainDrafter
from slipstream.methods.prompt_lookup import PromptLookupDrafter, PromptLookupSettings
from slipstream.target.passes import Executor
from slipstream.target.target import Target

PROMPT = prompt_ids(21)
SEEDED = Warping().settings()


def compared(target, drafter, prompt=PROMPT, settings=GREEDY, seed=0, num_new=NUM_NEW, prefill_chunk=512):
    request = make_request(target, prompt, num_new, settings, SamplingSettings(seed=seed))
    if isinstance(drafter, Scripted):
        drafter.truth = plain_text(target, request)
    return compare(target, drafter, request, prefill_chunk=prefill_chunk)


def assert_bitwise_equal(found):
    assert found.same_shape.divergence is None
    assert found.same_shape.num_compared == len(found.answer.token_ids)
    assert (found.num_states_differing, found.state_distance) == (0, 0.0)
    assert found.floor.is_zero
    assert found.floor.num_passes > 0


@pytest.mark.parametrize(("dtype", "settings"), [("float32", GREEDY), ("bfloat16", SEEDED)], ids=["float32", "bf16"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_method_is_bitwise_equal(configuration, dtype, settings):
    target = target_of("llama", DTYPES[dtype])
    found = compared(target, configured(configuration, target), settings=settings)
    assert_bitwise_equal(found)
    may_draft_nothing = configuration == "plain" or configuration.endswith("-auto")  # where nothing pays
    assert found.answer.num_drafted > 0 or may_draft_nothing


class Warming(Executor):
    """The first passes round otherwise than later ones, as eager ones do before their layers are compiled."""

    num_passes = 0

    def run(self, key, function, inputs, cache):
        output = function(inputs, cache)
        self.num_passes += 1
        warm = output.features is None or self.num_passes > 5
        return output if warm else replace(output, features=output.features + 1e-9)

    def settled(self, call):
        call()
        return call()


def test_passes_are_compared_once_they_are_settled():
    target = Target(FAMILIES["llama"](), Warming())
    found = certify(target, PromptLookupDrafter(PromptLookupSettings(length=3)), PROMPT)
    assert found.verdict == "lossless"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_accepted_paths_anywhere_in_the_tree_are_bitwise_equal(family, dtype):
    found = compared(target_of(family, DTYPES[dtype]), Scripted(random_tree))
    assert_bitwise_equal(found)
    assert found.answer.num_accepted > 5
    rows = [one.shape.rows for one in found.answer.passes]
    assert any(path != tuple(range(len(path))) for path in rows), "some path has to be gathered"


def test_prompts_prefilled_in_chunks_are_bitwise_equal():
    found = compared(target_of("llama", torch.bfloat16), Scripted(random_tree), prefill_chunk=4)
    assert_bitwise_equal(found)


@pytest.mark.parametrize("family", ["longrope", "dynamic-rope"])
def test_a_text_that_crosses_the_boundary_of_its_rope_is_bitwise_equal(family):
    assert_bitwise_equal(compared(target_of(family), Scripted(random_tree)))


def test_a_prompt_of_one_token_is_bitwise_equal():
    assert_bitwise_equal(compared(target_of(), Scripted(random_tree), prompt=[5]))


def test_the_context_limit_ends_both():
    found = compared(target_of(), Scripted(random_tree), prompt=prompt_ids(CONTEXT - 9))
    assert_bitwise_equal(found)
    assert (found.answer.finish_reason, len(found.answer.token_ids)) == ("context", 9)
    assert found.has_same_tokens


@pytest.mark.parametrize("settings", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_one_row_passes_are_plain_decoding_on_the_engine(settings):
    target = target_of("llama", torch.bfloat16)
    one = make_request(target, PROMPT, NUM_NEW, settings, SamplingSettings(seed=3))
    steps = list(Engine(target, PlainDrafter()).generate(one))
    assert plain_text(target, one) == [token for step in steps for token in step.token_ids]


def test_bf16_passes_of_several_rows_round_otherwise_than_passes_of_one():
    """Else the same shape would not be needed."""
    found = compared(target_of("llama", torch.bfloat16), Scripted(random_tree), num_new=24)
    assert found.row_by_row.logit_distance > 0


def test_recording_changes_no_step():
    target = target_of()
    one = make_request(target, PROMPT, NUM_NEW)
    drafter = Scripted(random_tree, plain_text(target, one))
    alone = decode(Engine(target, drafter), PROMPT, max_new_tokens=NUM_NEW)
    answer = record(target, drafter, one, prefill_chunk=512)
    assert list(answer.token_ids) == alone.ids
    assert [one.num_drafted for one in answer.passes] == [step.num_drafted for step in alone.steps]
    assert [len(one.shape.rows) for one in answer.passes] == [len(step.token_ids) for step in alone.steps]


def test_scouts_count_as_rows():
    target = target_of()
    drafter = configured("lookahead", target)
    answer = record(target, drafter, make_request(target, PROMPT, NUM_NEW), prefill_chunk=512)
    *passes, last = answer.passes
    assert all(one.shape.num_rows > 1 + one.num_drafted for one in passes)
    assert last.shape.num_rows >= 1


# -- the floor -----------------------------------------------------------------------------------------------------


def test_the_floor_sees_rows_that_depend_on_each_other(monkeypatch):
    """As experts do that are dispatched by batch."""
    target = target_of()
    right = type(target).forward

    def forward(self, tokens, *others, **more):
        output = right(self, tokens, *others, **more)
        if output.features is not None:
            output.features.add_(1e-4 * tokens.sum())
            output.logits.add_(1e-3 * (tokens.sum() % 7))
        return output

    monkeypatch.setattr(type(target), "forward", forward)
    reference = Reference(target, make_request(target, PROMPT, 8), prefill_chunk=512)
    tokens = reference.decode(repeat(PassShape(9, (0,))))
    next(tokens)
    floor = reference.floor()
    assert floor.logits > 0
    assert floor.hidden > 0


def test_measuring_the_floor_changes_no_token():
    target, texts = target_of("llama", torch.bfloat16), []
    shapes = [PassShape(12, (0, 3, 7)), PassShape(5, (0, 4))] * 3
    for measured in (False, True):
        reference = Reference(target, make_request(target, PROMPT, 12), prefill_chunk=512)
        texts.append([])
        for picked in reference.decode(shapes):
            texts[-1].append((picked.token, picked.hidden.tolist()))
            if measured:
                assert reference.floor().is_zero
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12


def test_a_one_row_pass_has_no_dummies_to_vary():
    reference = Reference(target_of(), make_request(target_of(), PROMPT, 4), prefill_chunk=512)
    next(reference.decode([ONE_ROW]))
    assert reference.floor().is_zero
