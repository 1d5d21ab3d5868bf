"""Grouped attention says what transformers' `sdpa` says, leaves the loaded model alone, and repeats no keys."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from families import FAMILIES, build, prompt_ids
from slipstream.core.tree import ancestor_mask
from slipstream.target import attention
from slipstream.target.attention import NAME, grouped_attention, with_grouped_attention
from slipstream.target.features import Features
from slipstream.target.masks import additive
from slipstream.target.passes import Executor
from slipstream.target.shadow import shadow
from slipstream.target.target import Target

GROUPED = ("llama", "qwen3", "gemma3", "cohere2", "mistral", "mixtral", "olmo3")
OWN_WAY = ("gemma2", "gpt_oss", "gpt2", "gpt_neox", "gptj", "deepseek_v3")
"""Soft-capped, with sinks, or without groups."""


class AsLoaded(Executor):
    """Runs what it is given."""

    def prepare(self, model: nn.Module) -> nn.Module:
        return model


def states(heads: int, key_heads: int, rows: int, slots: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    query = torch.randn(batch, rows, heads, 8, generator=rng, dtype=torch.float64).transpose(1, 2)
    key, value = (torch.randn(batch, key_heads, slots, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    allowed = torch.rand(batch, rows, slots, generator=rng) < 0.6
    allowed[..., 0] = True
    return query, key, value, additive(allowed, torch.float64)


def module(group: int) -> nn.Module:
    """As the attention function sees one."""
    made = nn.Module()
    made.num_key_value_groups = group
    return made.eval()


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_it_says_what_sdpa_says(heads, key_heads, rows):
    query, key, value, mask = states(heads, key_heads, rows, 11, batch=2)
    sdpa = AttentionInterface()["sdpa"]
    expected, _ = sdpa(module(heads // key_heads), query, key, value, mask, scaling=0.3)
    found, weights = grouped_attention(module(heads // key_heads), query, key, value, mask, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-14)


def test_keys_are_not_repeated(monkeypatch):
    seen = []
    right = nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **kwargs):
        seen.append((query.shape, key.shape, value.shape))
        return right(query, key, value, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    query, key, value, mask = states(6, 2, 5, 11)
    grouped_attention(module(3), query, key, value, mask)
    assert seen == [((1, 2, 15, 8), (1, 2, 11, 8), (1, 2, 11, 8))]


@pytest.mark.parametrize(
    "more",
    [
        {"position_bias": torch.ones(1)},
        {"s_aux": torch.ones(4)},
        {"softcap": 5.0},
        {"cache": object()},
        {"dropout": 0.5},
    ],
    ids=lambda more: next(iter(more)),
)
def test_whatever_is_more_goes_the_way_of_sdpa(more, monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *args, **kwargs: asked.append(kwargs))
    query, key, value, mask = states(4, 2, 3, 11)
    grouped_attention(module(2), query, key, value, mask, scaling=0.3, **more)
    grouped_attention(module(2), query, key, value, None, scaling=0.3)
    grouped_attention(module(2), query, key, value, mask.expand(-1, 4, -1, -1), scaling=0.3)
    assert asked == [{"scaling": 0.3, **more}, {"scaling": 0.3}, {"scaling": 0.3}]


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_pass_says_what_it_says_as_loaded(name, family_model):
    """A prompt and a tree, with features; and the model itself has the configurations that it had."""
    model = family_model(name)
    before = [module.__dict__.get("config") for module in model.modules()]
    found = []
    for executor in (AsLoaded(), Executor()):
        target = Target(model, executor)
        cache = target.new_cache(extra_slots=8)
        rows, tree = torch.tensor(prompt_ids(19)), torch.tensor([5, 6, 7, 8])
        first = target.forward(rows, torch.arange(19), target.causal(19), cache, features=Features(layers=(1,)))
        cache.commit(None, 19)
        visible = ancestor_mask(torch.tensor([-1, -1, 0]))
        second = target.forward(tree, torch.tensor([19, 20, 20, 21]), visible, cache)
        found.append((first.logits, first.features, second.logits))
    torch.testing.assert_close(found[1], found[0], rtol=0.0, atol=1e-5)  # some families have a softmax in float32
    assert all(a is b for a, b in zip(before, (one.__dict__.get("config") for one in model.modules()), strict=True))
    assert model.config.get_text_config()._attn_implementation != NAME


@pytest.mark.parametrize("name", GROUPED)
def test_models_whose_queries_share_keys_run_it(name, family_model):
    model = family_model(name)
    named = [one for one in with_grouped_attention(model).modules() if hasattr(one, "num_key_value_groups")]
    assert len(named) == model.config.num_hidden_layers
    assert {one.config._attn_implementation for one in named} == {NAME}


@pytest.mark.parametrize("name", OWN_WAY)
def test_others_run_as_they_are(name, family_model):
    model = family_model(name)
    assert with_grouped_attention(model) is model


@torch.inference_mode()
def test_an_adapter_put_into_the_model_later_is_run():
    """As PEFT does it: a linear layer of an attention is replaced by another module."""
    target, token = Target(build("llama")), torch.tensor([3, 4])

    def logits() -> Tensor:
        return target.forward(token, token - 3, target.causal(2), target.new_cache(2)).logits

    before = logits()
    for layer in target.layers:
        layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj, nn.Linear(32, 32, dtype=torch.float64))
    expected = target.model(input_ids=token[None], use_cache=False).logits
    torch.testing.assert_close(logits(), expected, rtol=0.0, atol=1e-12)
    assert not torch.allclose(before, expected)


def test_what_is_run_is_made_once_for_each_shadow_and_let_go_with_it():
    made = []

    class Counting(Executor):
        def prepare(self, model: nn.Module) -> nn.Module:
            prepared = super().prepare(model)
            made.append(weakref.ref(prepared))
            return prepared

    target = Target(build("llama"), Counting())
    other = shadow(target.model, {target.layers[0].mlp: lambda own: own})
    for instead in (None, other, None, other):
        token = torch.tensor([3])
        target.forward(token, token - 3, target.causal(1), target.new_cache(2), instead=instead)
    assert [one() is not None for one in made] == [True, True]
    del other, instead
    gc.collect()
    assert [one() is not None for one in made] == [True, False]
