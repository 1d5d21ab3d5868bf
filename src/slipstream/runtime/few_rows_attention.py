"""Attention by `few_rows.c`, as an attention function of transformers that compilers leave as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.runtime.few_rows import DTYPES, FewRows, few_rows
from slipstream.target.attention import grouped_attention, is_plain, with_attention, with_grouped_attention

NAME = "slipstream_few_rows"
_OPERATOR = "slipstream::few_rows_attention"


def with_few_rows_attention(model: nn.Module, *, traced: bool = False) -> nn.Module:
    """A shadow of `model` whose passes over few rows attend so, where that is possible, and others by groups.

    traced: passes are traced by a compiler, which is to see an operator; it costs a call.
    """
    dtypes = {one.dtype for one in model.parameters()}
    if len(dtypes) != 1 or few_rows(*dtypes) is None:
        return with_grouped_attention(model)
    return (
        with_attention(model, f"{NAME}_traced", traced_attention) if traced else with_attention(model, NAME, attention)
    )


def attention(
    module: nn.Module,
    query: Tensor,  # [b, heads, n, d]
    key: Tensor,  # [b, key heads, s, d]
    value: Tensor,  # [b, key heads, s, d of values]
    attention_mask: Tensor | None,  # [b, 1, n, s] additive
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: [b, n, heads, d of values], and no weights."""
    return _attention(_run, module, query, key, value, attention_mask, scaling, **kwargs)


def traced_attention(module: nn.Module, *tensors: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The same by an operator."""
    return _attention(_operator(), module, *tensors, **kwargs)


def _attention(
    run: Callable[..., Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if attention_mask is None or not is_plain(attention_mask, kwargs) or not _fits(query, key, value, attention_mask):
        return grouped_attention(module, query, key, value, attention_mask, scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return run(query, key, value, attention_mask, scale), None


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> bool:
    tensors = (query, key, value, mask)
    plain = all(one.dtype is query.dtype and one.is_cpu and not one.requires_grad for one in tensors)
    return plain and query.dtype in DTYPES and FewRows.attends(query, key, value)


@functools.cache
def _operator() -> Any:
    """`slipstream::few_rows_attention(query, key, value, mask, scale)`."""
    torch.library.define(_OPERATOR, "(Tensor query, Tensor key, Tensor value, Tensor mask, float scale) -> Tensor")
    torch.library.impl(_OPERATOR, "cpu", _run)
    torch.library.register_fake(_OPERATOR, _shape)
    return torch.ops.slipstream.few_rows_attention.default


def _run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    library = few_rows(query.dtype)
    assert library is not None
    return library.attention(query, key, value, mask, scale)


def _shape(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
