"""Muon takes the matrices and nothing else; a run with it ends where it should, interrupted or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slipstream.drafting.recipe import Optimisation
from slipstream.drafting.run_settings import RunSettings
from slipstream.errors import InputError
from slipstream.training.optimizers import build_optimizers

VOCAB = 50


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.embed, self.lm_head = nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB, bias=False)


def test_tables_of_tokens_and_vectors_stay_with_adamw():
    model = Weights()
    muon, adamw = build_optimizers("muon", model.parameters(), Optimisation(betas=(0.9, 0.95)), 0.1, VOCAB)
    assert [id(one) for one in muon.param_groups[0]["params"]] == [id(model.inner.weight)]
    others = [model.inner.bias, model.norm.weight, model.norm.bias, model.embed.weight, model.lm_head.weight]
    assert {id(one) for one in adamw.param_groups[0]["params"]} == {id(one) for one in others}
    assert adamw.param_groups[0]["betas"] == (0.9, 0.95)
    (alone,) = build_optimizers("adamw", model.parameters(), Optimisation(), 0.1, VOCAB)
    assert len(alone.param_groups[0]["params"]) == 6


def test_muons_updates_are_orthogonal_and_as_large_as_adamws():
    weight = nn.Parameter(torch.zeros(6, 6))
    (muon,) = build_optimizers("muon", [weight], Optimisation(weight_decay=0.0), 0.1, VOCAB)
    weight.grad = torch.diag(torch.tensor([100.0, 10.0, 1.0, 1.0, 1.0, 1.0]))
    muon.step()
    update = weight.detach().diagonal()
    assert update.abs().max() / update.abs().min() < 2, "directions of small gradients move as far"
    assert 0.3 < (weight.detach().norm() / 6 / 0.1 / 0.2).item() < 2  # root mean square: 0.2 of the rate, as AdamW's


def test_another_optimizer_is_refused():
    with pytest.raises(InputError, match="adamw, muon"):
        RunSettings(optimizer="sgd")
