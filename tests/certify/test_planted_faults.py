"""A fault comes out as one, in float32 and in bf16, and the sound engine passes.

The drafter knows the target's text, and offers it behind wrong branches, so that drafted tokens are accepted out of
slots that have to be gathered. Each fault is planted in the engine's own parts and leaves the text readable.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from certify.certify_doubles import DTYPES, NUM_NEW, NUMBERS, certify, plain_text, target_of
from doubles import Scripted, right_behind_wrong
from families import prompt_ids
from slipstream.certify.requests import make_request
from slipstream.core.tree import ancestor_mask, earlier_siblings
from slipstream.core.verify import walk
from slipstream.drafting.base import rows_after_root
from slipstream.model import Model
from slipstream.target.cache import SlotLayer
from slipstream.target.target import Target

PROMPT = prompt_ids(19)


def certificate(dtype, plant=None, monkeypatch=None, script=right_behind_wrong, **others):
    """Of a drafter that knows the text of the sound target."""
    target = target_of("llama", DTYPES[dtype])
    drafter = Scripted(script, plain_text(target, make_request(target, PROMPT, NUM_NEW)))
    if plant is not None:
        plant(monkeypatch)
    return certify(target, drafter, PROMPT, **others)


def position_off_by_one(monkeypatch):
    """Drafted nodes stand one place too far."""

    def rows(tree, scouts, max_depth):
        tokens, parents, depth = rows_after_root(tree, scouts, max_depth)
        return tokens, parents, depth + 1

    monkeypatch.setattr("slipstream.engine.cycle.rows_after_root", rows)


def sibling_leak(monkeypatch):
    """A node attends to the siblings before it. Who is whose ancestor stays right where the path is walked."""

    def leaky(parents: Tensor) -> Tensor:
        visible = ancestor_mask(parents)
        visible[1:, 1:] |= earlier_siblings(parents)
        return visible

    monkeypatch.setattr("slipstream.engine.cycle.ancestor_mask", leaky)
    monkeypatch.setattr("slipstream.engine.cycle.walk", lambda tree, choice, ancestors: walk(tree, choice))


def stale_row(monkeypatch):
    """The commit gathers the row before the accepted one."""
    right = SlotLayer.move
    monkeypatch.setattr(SlotLayer, "move", lambda self, slots, places: right(self, slots - 1, places))


def row_left_behind(monkeypatch):
    """The commit leaves the last accepted row where it is, and keeps what was there before."""
    right = SlotLayer.move
    monkeypatch.setattr(SlotLayer, "move", lambda self, slots, places: right(self, slots[:, :-1], places[:, :-1]))


FAULTS = [position_off_by_one, sibling_leak, stale_row, row_left_behind]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_a_fault(fault, dtype, monkeypatch):
    found = certificate(dtype, fault, monkeypatch)
    assert found.verdict == "FAULT"
    assert any("in the same shape" in line for line in found.faults())
    assert found.floor.is_zero


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [1, 5])
def test_the_sound_engine_passes(seed, dtype):
    found = certificate(dtype, num_seeds=1, first_seed=seed, in_float64=partial(in_float64, right_behind_wrong))
    assert found.verdict in ("lossless", "lossless up to rounding")
    assert found.num_drafted > 0
    assert found.answers[0].judged["same shape"].ruling == "identical"


def in_float64(script):
    target = target_of("llama", torch.float64)
    truth = plain_text(target, make_request(target, PROMPT, NUM_NEW))
    return Model(target, Scripted(script, truth), NUMBERS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fault_that_flips_no_token_is_a_fault(dtype, monkeypatch):
    """What margins would excuse: keys that are a hundredth off in one accepted row."""

    def slightly_off(self, slots, places):
        right(self, slots, places)
        self.keys[:, :, places[0, 0]] *= 1.01

    right = SlotLayer.move
    found = certificate(dtype, lambda patch: patch.setattr(SlotLayer, "move", slightly_off), monkeypatch)
    (answer,) = found.answers
    assert answer.found.same_shape.divergence is None
    assert answer.found.num_states_differing > 0
    assert found.verdict == "FAULT"


def wrong_positions_everywhere(monkeypatch):
    """A fault that plain decoding on our side shares: every second position is given twice."""
    right = Target.forward

    def forward(self, tokens, positions, *others, **more):
        return right(self, tokens, positions // 2, *others, **more)

    monkeypatch.setattr(Target, "forward", forward)


def test_a_fault_that_our_own_plain_decoding_shares_is_found_by_transformers(monkeypatch):
    found = certificate(
        "float32", wrong_positions_everywhere, monkeypatch, in_float64=partial(in_float64, right_behind_wrong)
    )
    (answer,) = found.answers
    assert answer.judged["same shape"].ruling == "identical"
    assert answer.judged["transformers"].ruling == "fault"
    assert found.verdict == "FAULT"


def test_without_a_float64_run_such_a_difference_is_not_waved_through(monkeypatch):
    found = certificate("float32", wrong_positions_everywhere, monkeypatch)
    assert found.answers[0].judged["transformers"].ruling == "undecided"
    assert found.verdict == "inconclusive"


def test_a_method_that_drafts_nothing_proves_nothing():
    found = certificate("float32", script=lambda run, ahead: [])
    assert found.verdict == "inconclusive"
    assert "drafted nothing" in found.doubts()[0]
