"""A shadow computes what the model computes, changed where it was to be, and the model knows nothing of it."""

from __future__ import annotations

import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from families import FAMILIES, build, prompt_ids
from slipstream.target.features import Features
from slipstream.target.shadow import Change, shadow
from slipstream.target.target import Target

IDS = torch.tensor([prompt_ids(6)])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def counting(calls: list[None]) -> Change:
    """Runs a module as ever, and counts."""

    def change(own: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            return own(*args, **kwargs)

        return forward

    return change


@pytest.fixture
def model() -> PreTrainedModel:
    return build("llama", num_hidden_layers=3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shadow_says_what_the_model_says(name, family_model):
    model, calls = family_model(name), []
    layers = Target(model).layers
    twin = shadow(model, {layer: counting(calls) for layer in layers})
    assert torch.equal(logits(twin), logits(model))
    assert len(calls) == len(layers)


def test_only_what_leads_to_a_change_has_a_twin(model):
    changed = model.model.layers[1].mlp
    twin = shadow(model, {changed: lambda own: own})
    own = {id(one) for one in model.modules()}
    twins = [name for name, one in twin.named_modules() if id(one) not in own]
    assert twins == ["", "model", "model.layers", "model.layers.1", "model.layers.1.mlp"]
    assert [type(one) for one in twin.modules()] == [type(one) for one in model.modules()]
    assert shadow(model, {}) is model


def test_a_shadow_holds_the_models_own_tensors_and_sees_them_change(model):
    twin = shadow(model, {model.model.layers[0]: lambda own: own})
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        model.model.layers[0].mlp.down_proj.weight = nn.Parameter(torch.randn(32, 48, dtype=torch.float64))
    assert torch.equal(logits(twin), logits(model))
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_a_module_that_occurs_twice_has_one_twin(model):
    model.model.layers[2] = model.model.layers[1]
    calls: list[None] = []
    twin = shadow(model, {model.model.layers[1]: counting(calls)})
    assert twin.model.layers[2] is twin.model.layers[1]
    logits(twin)
    assert len(calls) == 2


def test_a_hook_that_a_user_sets_later_works_in_both(model):
    twin = shadow(model, {model.model.layers[0]: lambda own: own})
    before = logits(model)
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * 2)
    assert torch.equal(logits(twin), logits(model))
    assert not torch.equal(logits(twin), before)


def as_method(layer: nn.Module) -> Any:
    return types.MethodType(lambda self, *args, **kwargs: 2 * type(self).forward(self, *args, **kwargs), layer)


def as_partial(layer: nn.Module) -> Any:
    return functools.partial(lambda self, *args, **kwargs: 2 * type(self).forward(self, *args, **kwargs), layer)


def as_closure(layer: nn.Module) -> Any:
    own = layer.forward
    return lambda *args, **kwargs: 2 * own(*args, **kwargs)


def as_closure_twice(layer: nn.Module) -> Any:
    own = as_closure(layer)
    return lambda *args, **kwargs: own(*args, **kwargs)


@pytest.mark.parametrize("forward", [as_method, as_partial, as_closure, as_closure_twice])
def test_a_forward_of_a_users_own_runs_what_is_changed_within(forward, model):
    """It leads to the module that it was made for, which has no changes."""
    layer = model.model.layers[1]
    layer.forward = forward(layer)
    calls: list[None] = []
    twin = shadow(model, {layer.mlp: counting(calls)})
    assert torch.equal(logits(twin), logits(model))
    assert len(calls) == 1


@pytest.mark.parametrize("where", ["layer", "base", "whole"])
def test_what_was_compiled_runs_uncompiled_where_it_is_changed(where, model):
    expected, calls = logits(model), []
    layer = model.model.layers[1]
    if where == "layer":
        layer.compile(backend="eager")
    elif where == "base":
        model.model.layers[1] = torch.compile(layer, backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    twin = shadow(model, {layer.mlp: counting(calls)})
    assert torch.equal(logits(twin), expected)
    assert len(calls) == 1


def test_features_come_in_the_order_they_were_asked_for(model):
    target = Target(model)

    def features(asked: Features) -> Tensor:
        cache = target.new_cache(8)
        return target.forward(IDS[0], torch.arange(6), target.causal(6), cache, features=asked).features

    last, first, second = (
        features(one) for one in (Features(last_hidden=True), Features(layers=(0,)), Features(layers=(2,)))
    )
    assert torch.equal(features(Features(last_hidden=True, layers=(2, 0))), torch.cat((last, second, first), dim=-1))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


@pytest.mark.parametrize("name", ["dynamic-rope", "longrope"])
def test_passes_leave_no_state_on_the_model(name, family_model):
    model = family_model(name)
    target = Target(model)
    state = {key: value.clone() for key, value in model.named_buffers()}
    cache = target.new_cache(8)
    target.forward(torch.tensor(prompt_ids(50)), torch.arange(50), target.causal(50), cache)
    assert all(torch.equal(value, state[key]) for key, value in model.named_buffers())
