"""Which dialogues make a step follows from seed and epoch alone, and no step is larger than it was to be."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from slipstream.drafting.packing import padded
from slipstream.errors import InputError
from slipstream.training.data.batches import Plan, laid_out
from slipstream.training.data.dialogues import Dialogue

LENGTHS = [30, 5, 12, 90, 7, 7, 41, 3, 22, 18, 60, 11]


def by_tokens(tokens: int, seed: int = 0) -> Plan:
    return Plan(LENGTHS, batch_size=None, tokens_per_step=tokens, seed=seed)


def test_every_dialogue_is_in_an_epoch_once_but_for_a_small_rest():
    for epoch in range(5):
        found = [index for step in by_tokens(60).epoch(epoch) for index in step]
        assert len(found) == len(set(found))
        assert sum(LENGTHS) - sum(LENGTHS[index] for index in found) < 30


def test_a_step_holds_so_many_tokens_at_most_or_one_dialogue():
    for step in by_tokens(60).epoch(0):
        assert len(step) == 1 or sum(LENGTHS[index] for index in step) <= 60


def test_little_data_makes_one_step():
    assert sorted(by_tokens(10_000).epoch(0)[0]) == list(range(12))


def test_batches_of_dialogues_have_their_number():
    plan = Plan(LENGTHS, batch_size=5, tokens_per_step=1)
    assert [len(step) for step in plan.epoch(3)] == [5, 5]


def test_any_step_can_be_taken_up_again():
    whole = list(islice(by_tokens(60).after(0), 30))
    for step in (0, 1, 9, 17):
        assert list(islice(by_tokens(60).after(step), 30 - step)) == whole[step:]
    assert list(islice(by_tokens(60, seed=1).after(0), 30)) != whole


def test_epochs_are_counted_in_steps():
    plan = by_tokens(60)
    whole = sum(len(plan.epoch(number)) for number in range(3))
    assert plan.num_steps(3) == whole
    assert plan.num_steps(3.5) == whole + round(0.5 * len(plan.epoch(3)))
    assert plan.num_steps(0.001) == 1


def test_data_that_fills_no_step_is_refused():
    with pytest.raises(InputError, match="12 dialogues are fewer than a batch of 13"):
        Plan(LENGTHS, batch_size=13, tokens_per_step=1)


def test_texts_one_after_another_and_padded():
    ids, answer = laid_out([Dialogue((4, 5), (False, True)), Dialogue((6,), (True,))])
    assert (ids.tolist(), answer.tolist()) == ([4, 5, 6], [False, True, True])
    assert padded(ids, (2, 1)).tolist() == [[4, 5], [6, 0]]
    assert padded(torch.ones(3, 2), (2, 1))[1].tolist() == [[1, 1], [0, 0]]
