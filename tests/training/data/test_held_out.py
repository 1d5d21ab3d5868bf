"""Bits per byte: against a slow twin, a known distribution, and the overlap rule."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slipstream.training.data.held_out import Trigram, document_nats, overlaps, run_hashes
from slipstream.training.settings import TargetSettings
from slipstream.training.target import build_model

CPU = torch.device("cpu")


class UniformModel:
    """A causal LM double that gives every token of `vocab` the same probability."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def model(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.zeros(*input_ids.shape, 1))

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.expand(*hidden.shape[:-1], self._vocab)


def random_documents(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 50, n).astype(np.uint16) for n in lengths]


@pytest.mark.parametrize("window", [4, 100])
def test_every_token_but_the_first_is_counted_once(window: int) -> None:
    documents = random_documents(2, 30, 9, 1, 5, 8)
    expected = sum(len(d) - 1 for d in documents) * math.log(7)
    assert document_nats(UniformModel(7), [d % 7 for d in documents], CPU, window) == pytest.approx(expected)


def test_padding_changes_no_loss(settings: TargetSettings) -> None:
    model = build_model(settings).eval()
    documents = random_documents(12, 31, 20, 3)
    alone = sum(document_nats(model, [d], CPU, 64) for d in documents)
    assert document_nats(model, documents, CPU, 64) == pytest.approx(alone, rel=1e-3)


def test_shared_run_is_found_wherever_it_stands() -> None:
    train, other, fresh = random_documents(500, 40, 40)
    seen = run_hashes([train], 8)
    copied = np.concatenate([other[:13], train[200:208], other[13:]])
    assert overlaps(copied, seen, 8)
    assert overlaps(copied | np.uint16(1 << 15), seen, 8)  # whoever wrote it
    assert not overlaps(np.concatenate([fresh[:13], train[200:207], fresh[13:]]), seen, 8)
    assert not overlaps(train[:7], seen, 8)


def test_trigram_is_a_distribution_after_any_context() -> None:
    tokens = np.random.default_rng(1).integers(0, 5, 200)
    model = Trigram(tokens, 6)  # token 5 was never seen
    for older, newer in [(0, 1), (4, 4), (5, 5), (5, 0)]:
        before = model.bits(np.array([older, newer]))
        total = sum(2 ** -(model.bits(np.array([older, newer, label])) - before) for label in range(6))
        assert total == pytest.approx(1)


def test_trigram_learns_what_follows() -> None:
    model = Trigram(np.tile([0, 1, 2, 3], 100), 4)
    assert model.bits(np.array([0, 1, 2, 3, 0])) < model.bits(np.array([0, 2, 1, 0, 3])) / 10
