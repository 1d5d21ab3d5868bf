"""What draft heads build on: hidden states of every family, and the way from the last ones to the logits."""

from __future__ import annotations

import pytest
import torch

from families import FAMILIES, prompt_ids
from pass_sizes import both_sizes
from slipstream.target.features import Features, WatchedModel
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


@both_sizes
@pytest.mark.parametrize("name", FAMILIES)
def test_states_entering_layers_come_in_the_order_asked_for(name, family_model):
    """Whatever order that is; a layer may be asked for twice."""
    target, layers = Target(family_model(name)), (1, 0, 1)
    wanted = Features(layers=layers)
    target.check_features(wanted)
    ids = torch.tensor(prompt_ids(7))
    with torch.inference_mode():
        output = target.forward(ids, torch.arange(7), target.causal(7), target.new_cache(8), features=wanted)
        states = target.model(input_ids=ids[None], use_cache=False, output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer] for layer in layers], dim=-1)
    torch.testing.assert_close(output.features, expected, rtol=0, atol=1e-5)  # some families attend in float32


def test_states_of_a_target_on_several_devices_are_gathered_on_one(family_model):
    """The device `meta` stands for another one: tensors are not concatenated across devices."""
    target = Target(family_model("llama"))
    watched = WatchedModel(target.model, target.base, target.layers, Features(layers=(1, 0)))
    seen = {target.layers[0]: torch.zeros(1, 3, 32), target.layers[1]: torch.zeros(1, 3, 32, device="meta")}
    gathered = watched.gathered(seen, torch.device("meta"))
    assert (gathered.shape, gathered.device.type) == ((1, 3, 64), "meta")
