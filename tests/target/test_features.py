"""What draft heads build on: the last hidden state of every family, and the way from it to the logits."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, prompt_ids
from slipstream.target.features import Features
from slipstream.target.target import Target


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_makes_logits_of_the_last_hidden_state(name, family_model):
    target = Target(family_model(name))
    with torch.inference_mode():
        output = target.forward(
            torch.tensor(prompt_ids(7)),
            torch.arange(7),
            target.causal(7),
            target.new_cache(8),
            features=Features(last_hidden=True),
        )
        assert torch.allclose(target.head(output.features), output.logits, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "gpt2"])
def test_gradients_flow_through_the_head_to_the_hidden_state(name, family_model):
    target = Target(family_model(name))
    hidden = torch.randn(1, 3, 32, dtype=torch.float64, requires_grad=True)
    target.head(hidden).pow(2).sum().backward()
    assert hidden.grad.abs().sum() > 0
    target.model.zero_grad()
