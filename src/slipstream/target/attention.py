"""Attention over grouped queries that never repeats keys and values.

With a mask, transformers' `sdpa` copies every key and value once for each query head that shares it, in every layer of
every pass. Here the queries that share a key stand as further rows of one head, under the same mask. The result is the
same but for the order of sums.

A shadow of the model names the function in configurations of its own, so the loaded model keeps what it has. Whatever
is more than grouped queries under one mask goes to `sdpa` as before: sinks, biases by position, masks of single heads.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from slipstream.target.shadow import shadow

NAME = "slipstream_grouped"
_IMPLEMENTATION = "_attn_implementation"
_MORE = ("softcap", "s_aux", "position_bias", "cache")  # arguments that ask for more than a mask


def grouped_attention(
    module: nn.Module,
    query: Tensor,  # [b, heads, n, d]
    key: Tensor,  # [b, key heads, s, d]
    value: Tensor,  # [b, key heads, s, d of values]
    attention_mask: Tensor | None,  # [b, 1, n, s] additive
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: [b, n, heads, d of values], and no weights."""
    if attention_mask is None or not _folds(query, key, attention_mask, kwargs):
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    b, heads, n, d = query.shape
    group = heads // key.shape[1]
    out = nn.functional.scaled_dot_product_attention(
        query.reshape(b, key.shape[1], group * n, d),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, group, 1),  # [b, 1, group * n, s]
        scale=scaling,
    )
    return out.reshape(b, heads, n, value.shape[-1]).transpose(1, 2).contiguous(), None


def _folds(query: Tensor, key: Tensor, mask: Tensor, more: dict[str, Any]) -> bool:
    """Whether queries can be made rows. One row is left to `sdpa`, which does the same for it."""
    plain = not more.get("dropout") and all(more.get(name) is None for name in _MORE)
    return plain and query.shape[1] > key.shape[1] and query.shape[2] > 1 and mask.shape[1] == 1


def with_grouped_attention(model: nn.Module) -> nn.Module:
    """A shadow of `model` that attends so; `model` itself where no queries share keys, or not through `sdpa`."""
    sharing = [module for module in model.modules() if _shares_keys(module)]
    if not sharing:
        return model
    AttentionInterface.register(NAME, grouped_attention)
    configs = {id(module.config): _renamed(module.config) for module in sharing}
    twin, own = shadow(model, {module: lambda own: own for module in sharing}), set(model.modules())
    for module in twin.modules():
        if module not in own and _shares_keys(module):
            module.config = configs[id(module.config)]
    return twin


def _shares_keys(module: nn.Module) -> bool:
    config = module.__dict__.get("config")
    return module.__dict__.get("num_key_value_groups", 1) > 1 and getattr(config, _IMPLEMENTATION, None) == "sdpa"


def _renamed(config: Any) -> Any:
    renamed = copy.deepcopy(config)
    setattr(renamed, _IMPLEMENTATION, NAME)
    return renamed
