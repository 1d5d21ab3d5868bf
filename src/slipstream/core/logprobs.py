"""Log-probabilities of emitted tokens, and of the likeliest tokens beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What a model thought of one token that was emitted."""

    token_id: int
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...]
    """Token id and log-probability of the likeliest tokens at this place, the likeliest first."""


def token_logprobs(logits: Tensor, tokens: Sequence[int], num_top: int) -> tuple[TokenLogprobs, ...]:
    """Of each token under the logits that it was chosen from. logits: [len(tokens), vocab]. Copies to the host."""
    log_p = logits.log_softmax(dim=-1)  # [n, vocab]
    chosen = log_p.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    best = log_p.topk(num_top, dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple(
        TokenLogprobs(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, (ids, values) in zip(tokens, chosen, tops, strict=True)
    )
