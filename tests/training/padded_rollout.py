"""The loss of an EAGLE head over padded batches, with dense masks and all logits: slow twin of `losses.RolloutLoss`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from slipstream.drafting.packing import rollout_mask
from slipstream.methods.eagle.head import EagleHead
from slipstream.target.masks import additive
from slipstream.target.target import Target


@dataclass
class PaddedLosses:
    """As `losses.Losses`, without the paths."""

    feature: Tensor  # [steps]
    token: Tensor  # [steps]
    num_correct: Tensor  # [steps]
    num_rows: Tensor  # [steps]


def padded_losses(
    head: EagleHead, target: Target, ids: Tensor, features: Tensor, answer: Tensor, steps: int, noise: Tensor | None
) -> PaddedLosses:
    """Of `steps` steps ahead. ids, answer: [b, n]; features, noise: [b, n, h]."""
    embeddings = target.model.get_input_embeddings()(ids[:, 1:]).to(head.dtype)
    true, fed = features[:, 1:].to(head.dtype), features[:, :-1].to(head.dtype)  # [b, r, h]
    if noise is not None:
        fed = fed + noise[:, :-1]
    counted = torch.nn.functional.pad(answer[:, 2:], (0, 1))  # [b, r]
    positions = torch.arange(true.shape[1])
    cache = DynamicCache()
    parts = []
    for step in range(steps):
        mask = additive(rollout_mask(true.shape[1], true.shape[1], step, ids.device)[None], head.dtype)
        predicted = head(embeddings, fed, positions[None].expand(ids.shape[0], -1), mask, cache)
        rows = counted & (positions >= step)
        p = target.head(true[rows][None])[0].softmax(dim=-1)
        log_q = target.head(predicted[rows][None])[0].log_softmax(dim=-1)
        parts.append(
            (
                torch.nn.functional.smooth_l1_loss(predicted[rows], true[rows]),
                -(p * log_q).sum(dim=-1).mean(),
                (p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum(),
                rows.sum(),
            )
        )
        fed = torch.cat((fed[:, :1], predicted[:, :-1]), dim=1)
    return PaddedLosses(*(torch.stack(values) for values in zip(*parts, strict=True)))
