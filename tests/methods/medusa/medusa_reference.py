"""Medusa heads the slow way: one head, one layer, one row at a time, from the published names and formula.

And a target that heads can know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from families import build
from methods.eagle.eagle_reference import true_features
from slipstream.methods.medusa.head import MedusaHeads, MedusaSizes
from slipstream.target.target import Target


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


def cycling_pair() -> tuple[Target, MedusaHeads, list[int]]:
    """A target that goes round a cycle of all its tokens, heads that know it, and the cycle.

    The target's layers add nothing, so the feature of a token is its (normed) embedding, and the LM head of the token
    that follows in the cycle is that embedding. Own LM heads say the same of later tokens.
    """
    model = build("llama")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    after = torch.empty(64, dtype=torch.int64)
    after[order] = order.roll(-1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        rows = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=1)
        model.lm_head.weight[after] = rows
    target = Target(model)
    heads = MedusaHeads(MedusaSizes(num_heads=4, hidden_size=32, vocab_size=64)).double()
    with torch.no_grad():
        later = after
        for lm_head in heads.lm_heads:
            later = after[later]
            lm_head[later] = rows
    return target, heads.requires_grad_(False), order.tolist()
