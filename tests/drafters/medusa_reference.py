"""Medusa heads the slow way: one head, one layer, one row at a time, from the published names and formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from drafters.eagle_reference import true_features
from slipstream.target import Target


def reference_head(
    tensors: Mapping[str, Tensor], head: int, num_layers: int, feature: Tensor, target: Target
) -> Tensor:
    """Logits of one head after one token, [vocab]. feature: [h]."""
    x = feature
    for place in range(num_layers):
        inner = tensors[f"{head}.{place}.linear.weight"] @ x + tensors[f"{head}.{place}.linear.bias"]
        x = x + inner / (1 + torch.exp(-inner))
    own = tensors.get(f"{head}.{num_layers}.weight")
    return target.head(x[None, None])[0, 0] if own is None else own @ x


def reference_draft(
    tensors: Mapping[str, Tensor], num_layers: int, target: Target, tokens: Sequence[int], depth: int
) -> list[int]:
    """The best token of each of `depth` levels after `tokens`, whose last is the root."""
    feature = true_features(target, list(tokens[:-1]))[-1]  # of the token before the root
    return [int(reference_head(tensors, head, num_layers, feature, target).argmax()) for head in range(depth)]
