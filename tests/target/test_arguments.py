"""Names of arguments follow the transformers that is installed."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from transformers import LlamaForCausalLM

import slipstream
from families import build, prompt_ids, transformers_greedy
from slipstream.target.arguments import cache_argument, required_beside_text


def renamed(name):
    """A forward as transformers has it before or after the change of name, which takes no other."""
    own = LlamaForCausalLM.forward
    theirs = cache_argument(own)

    if name == "cache":

        @functools.wraps(own)
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, **kwargs):
            assert "past_key_values" not in kwargs
            return own(self, input_ids, attention_mask, position_ids, **{theirs: cache}, **kwargs)
    else:

        @functools.wraps(own)
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
            assert "cache" not in kwargs
            return own(self, input_ids, attention_mask, position_ids, **{theirs: past_key_values}, **kwargs)

    del forward.__wrapped__
    return forward


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_passed_under_the_name_that_the_model_takes(name, monkeypatch):
    model, prompt = build("llama"), prompt_ids(9)
    expected = transformers_greedy(model, prompt, 8)
    monkeypatch.setattr(LlamaForCausalLM, "forward", renamed(name))
    assert cache_argument(type(model).forward) == name
    for method in ("plain", "layer-skip"):
        sizes = {} if method == "plain" else {"width": 3, "depth": 3, "total": 6}
        loaded = slipstream.load(model, method, **sizes)
        answer = loaded.generate(prompt, max_new_tokens=8, temperature=0.0, eos_token_id=[])
        assert answer.token_ids == expected


def test_nothing_that_is_deprecated_is_passed(family_model):
    loaded = slipstream.load(family_model("llama"), "layer-skip", width=3, depth=3, total=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.generate(torch.arange(2, 9), max_new_tokens=8, temperature=0.0)


def test_arguments_without_a_default_that_are_no_text():
    def forward(self, input_ids, pixel_values, *rest, mask=None, grid, **kwargs):
        raise NotImplementedError

    assert required_beside_text(forward) == ["pixel_values", "grid"]
    assert required_beside_text(LlamaForCausalLM.forward) == []
