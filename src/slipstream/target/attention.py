"""Attention over grouped queries that never repeats keys and values.

With a mask, transformers' `sdpa` copies every key and value once for each query head that shares it, in every layer of
every pass. Here the queries that share a key stand as further rows of one head, under the same mask. The result is the
same but for the order of sums.

A shadow of the model names the function in configurations of its own, so the loaded model keeps what it has. Whatever
is more than grouped queries under one mask goes to `sdpa` as before: sinks, biases by position, masks of single heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from slipstream.target.shadow import shadow

NAME = "slipstream_grouped"
AttentionFunction = Callable[..., tuple[Tensor, None]]
"""An attention function of transformers."""
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
    if attention_mask is None or not _folds(query, key) or not is_plain(attention_mask, kwargs):
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


def is_plain(mask: Tensor, more: dict[str, Any]) -> bool:
    """Whether an attention function is asked for nothing but attention under one mask for all heads."""
    return mask.shape[1] == 1 and not more.get("dropout") and all(more.get(name) is None for name in _MORE)


def _folds(query: Tensor, key: Tensor) -> bool:
    """Whether queries are to be made rows. One row is left to `sdpa`, which does the same for it."""
    return query.shape[1] > key.shape[1] and query.shape[2] > 1


def with_grouped_attention(model: nn.Module) -> nn.Module:
    """A shadow of `model` that attends so; `model` itself where no queries share keys, or not through `sdpa`."""
    return with_attention(model, NAME, grouped_attention, fewest=2)


def with_attention(model: nn.Module, name: str, function: AttentionFunction, fewest: int = 1) -> nn.Module:
    """A shadow of `model` that attends by a function that gets this name; `model` itself where nothing attends by it.

    fewest: queries that share a key at least, where modules attend so that do so by `sdpa`.
    """
    modules = [module for module in model.modules() if _attends(module, fewest)]
    if not modules:
        return model
    AttentionInterface.register(name, function)
    configs = {id(module.config): _renamed(module.config, name) for module in modules}
    twin, own = shadow(model, {module: lambda own: own for module in modules}), set(model.modules())
    for module in twin.modules():
        if module not in own and _attends(module, fewest):
            module.config = configs[id(module.config)]
    return twin


def _attends(module: nn.Module, fewest: int) -> bool:
    config, shared = module.__dict__.get("config"), module.__dict__.get("num_key_value_groups", 0)
    return shared >= fewest and getattr(config, _IMPLEMENTATION, None) == "sdpa"


def _renamed(config: Any, name: str) -> Any:
    renamed = copy.deepcopy(config)
    setattr(renamed, _IMPLEMENTATION, name)
    return renamed
