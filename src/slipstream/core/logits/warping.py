"""Temperature, top-k, top-p and min-p on rows of logits, equal to transformers' warpers.

Used on the target's rows and on drafters' rows: both sides see the same truncated distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slipstream.errors import InputError

_FILTERED = -float("inf")
_NUCLEUS_LIMIT = 256  # top-p on CPU looks among this many most probable tokens before it sorts the vocabulary
_NUCLEUS_MARGIN = 1e-5  # a cumulative probability this near to top_p is left to the full sort, whose rounding decides


def warp(logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Temperature, top-k, top-p and min-p, in this order, as transformers' warpers: same values, same removed tokens.

    logits: [rows, vocab], any float type. temperature: above 0. Returns [rows, vocab] of the same type, -inf = removed.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; only a positive one reshapes logits (0 is greedy decoding)")
    if temperature != 1.0:
        logits = logits / temperature
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # [rows, 1]
        logits = logits.masked_fill(logits < kth, _FILTERED)
    if top_p < 1.0:
        logits = _keep_nucleus(logits, top_p)
    if min_p:
        probabilities = logits.softmax(dim=-1)
        least = min_p * probabilities.amax(dim=-1, keepdim=True)  # [rows, 1]
        logits = logits.masked_fill(probabilities < least, _FILTERED)
    return logits


def _keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Top-p. Sorting rows of 150k tokens takes longer than a forward pass on CPU, so there it is the last resort."""
    exact_types = (torch.float32, torch.float64)
    if logits.device.type != "cpu" or logits.dtype not in exact_types or logits.shape[-1] <= 2 * _NUCLEUS_LIMIT:
        return _keep_nucleus_sorting(logits, top_p)
    floor, certain = _nucleus_floor(logits, top_p)
    kept = logits.masked_fill(logits < floor, _FILTERED)
    if not certain.all():
        kept[~certain] = _keep_nucleus_sorting(logits[~certain], top_p)
    return kept


def _keep_nucleus_sorting(logits: Tensor, top_p: float) -> Tensor:
    """Top-p the way transformers computes it: its order among equals and its rounding included."""
    ascending, order = logits.sort(dim=-1)  # [rows, vocab]
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    removed[:, -1] = False
    return logits.masked_fill(removed.scatter(1, order, removed), _FILTERED)


def _nucleus_floor(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The least logit that top-p keeps in each row, and whether that is certain.

    Returns [rows, 1] and [rows] bool. Uncertain: the nucleus may be larger than the tokens looked at, its border falls
    between equal logits, or a cumulative probability is so near `top_p` that rounding decides.
    """
    best = logits.topk(_NUCLEUS_LIMIT).values  # [rows, limit], descending
    weights = (best - best[:, :1]).exp()  # of the most probable token: 1, so that large logits cost no digits
    total = (logits - best[:, :1]).exp().sum(dim=-1, keepdim=True)  # [rows, 1]
    mass = (weights / total).cumsum(dim=-1)[:, :-1]  # [rows, limit - 1]: mass above token 1, 2, ...
    num_kept = (mass < top_p).sum(dim=-1, keepdim=True) + 1  # [rows, 1]
    floor = best.gather(1, num_kept - 1)
    next_best = best.gather(1, num_kept.clamp(max=_NUCLEUS_LIMIT - 1))  # equals `floor` when all were kept
    clear = ((mass - top_p).abs() > _NUCLEUS_MARGIN).all(dim=-1, keepdim=True)
    return floor, (clear & (next_best < floor)).squeeze(1)
