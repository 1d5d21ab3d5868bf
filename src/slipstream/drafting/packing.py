"""Texts laid one after another without padding: linear layers run over all rows, attention stays within each text.

A registered attention function that knows the texts' lengths calls scaled-dot-product attention once a text, so a pass
over many texts costs what its tokens cost. Positions restart with every text. Not every target takes this (an
architecture may make positions or masks of its own, or cap its attention's logits): `takes_packed` tries it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from slipstream.target.features import Features
from slipstream.target.target import Target

logger = logging.getLogger(__name__)

LAST_HIDDEN = Features(last_hidden=True)
_NAME = "slipstream_packed"
_KINDS = ("full_attention", "sliding_attention")
_UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")  # what would change an attention that is not told of it


@contextmanager
def attention_within(config: Any, lengths: Sequence[int], tails: Sequence[int] | None = None) -> Iterator[None]:
    """Let modules that read `config` attend within texts of these lengths (their sum is the number of rows).

    tails: for a rollout, whose first pass has all rows and whose later ones, over the same cache, have the last
    `tails[i]` rows of each text; see `rollout_mask`.
    """
    rollout = _Rollout(lengths, lengths if tails is None else tails)

    def attention(
        module: Any,
        query: Tensor,  # [1, heads, rows, d]
        key: Tensor,  # [1, key heads, rows of all passes, d]
        value: Tensor,  # [1, key heads, rows of all passes, d]
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is not None or any(more.get(name) is not None for name in _UNKNOWN):
            raise NotImplementedError("this attention is not plain causal attention within texts")
        return rollout.attend(query, key, value, scaling, sliding_window).transpose(1, 2), None

    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[_NAME] = attention
    try:
        config._attn_implementation = _NAME
        yield
    finally:
        config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[_NAME]


class _Rollout:
    """Where the rows of each text lie in a pass over all of them."""

    def __init__(self, lengths: Sequence[int], tails: Sequence[int]) -> None:
        self.num_rows, self.num_tail_rows = sum(lengths), sum(tails)
        self._spans = [list(pairwise(accumulate(counts, initial=0))) for counts in (lengths, tails)]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
        """[1, heads, rows, d]: each text's rows over its own keys."""
        later = key.shape[2] - self.num_rows  # rows of passes after the first
        step = later // self.num_tail_rows if later else 0
        parts = []
        for (first, end), (tail, tail_end) in zip(*self._spans, strict=True):
            rows = slice(tail, tail_end) if step else slice(first, end)
            if rows.start == rows.stop:
                continue
            places = [slice(first, end)]
            for number in range(step):
                start = self.num_rows + number * self.num_tail_rows
                places.append(slice(start + tail, start + tail_end))
            mask = None
            if step:
                mask = rollout_mask(end - first, tail_end - tail, step, query.device)
            elif window is not None and end - first > window:
                mask = _sliding_mask(end - first, window, query.device)
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(
                    query[:, :, rows],
                    torch.cat([key[:, :, place] for place in places], dim=2) if step else key[:, :, places[0]],
                    torch.cat([value[:, :, place] for place in places], dim=2) if step else value[:, :, places[0]],
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scale,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
        return torch.cat(parts, dim=2) if parts else query


def rollout_mask(num_rows: int, tail: int, step: int, device: torch.device) -> Tensor:
    """[tail, num_rows + step * tail] bool: which rows of steps 0 .. step the last `tail` rows of a text see in `step`.

    Of step 0 (true features, all rows) those up to t - step; of step i > 0 (the last rows) that of t - (step - i) only,
    the own path.
    """
    t = torch.arange(num_rows, device=device)
    distance = t[num_rows - tail :, None] - t[None, :]  # [tail, num_rows], how far back a row lies
    own = distance[:, num_rows - tail :]
    return torch.cat([distance >= step, *(own == step - i for i in range(1, step + 1))], dim=1)


def _sliding_mask(num_rows: int, window: int, device: torch.device) -> Tensor:
    t = torch.arange(num_rows, device=device)
    distance = t[:, None] - t[None, :]
    return (distance >= 0) & (distance < window)


def positions_within(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[sum of lengths] int64: the place of every row in its text."""
    return torch.cat([torch.arange(length) for length in (0, *lengths)]).to(device)


def packed_features(target: Target, ids: Tensor, lengths: Sequence[int], wanted: Features = LAST_HIDDEN) -> Tensor:
    """Hidden states [n, width] of texts laid one after another, ids [n]. The target must take them so."""
    run = target.hidden_pass(wanted)  # made before: that takes a pass of one token, which is none of these texts
    with attention_within(target.config, lengths):
        positions = positions_within(lengths, ids.device)
        return run(input_ids=ids[None], position_ids=positions[None])[0]


def padded(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """[b, longest, ..] of texts that lie one after another in `values` [n, ..], with zeros behind each."""
    return torch.nn.utils.rnn.pad_sequence(list(torch.split(values, list(lengths))), batch_first=True)


@torch.no_grad()
def takes_packed(target: Target) -> bool:
    """Whether a target computes texts laid one after another as it computes them alone, to rounding; tried on two."""
    kinds = set(getattr(target.config, "layer_types", None) or ["full_attention"])
    if not kinds <= set(_KINDS) or not target.family.may_pack_texts:
        return False
    lengths = (7, 12)
    ids = torch.arange(sum(lengths), device=target.device) * 7919 % target.vocab_size
    try:
        packed = packed_features(target, ids, lengths)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        logger.info("%s takes no packed texts: %s", target.name, error)
        return False
    alone = [
        target.base(input_ids=one[None], use_cache=False)[0][0].to(ids.device)
        for one in torch.split(ids, list(lengths))
    ]
    expected = torch.cat(alone).double()
    limit = 0.05 if target.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool((packed.double() - expected).norm() <= limit * expected.norm())
