"""A slow, independent EAGLE head: one full-sequence pass, no cache, no module of transformers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slipstream.target.target import Target


def reference_head(
    tensors: Mapping[str, Tensor],
    embeddings: Tensor,  # [n, e], of the tokens after the features
    features: Tensor,  # [n, h]
    *,
    head_dim: int,
    eps: float,
    theta: float,
) -> Tensor:
    """Predicted features [n, h] of rows at positions 0, 1, ..., each seeing itself and the rows before."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    n = embeddings.shape[0]
    x = linear("fc", torch.cat((embeddings, features), dim=1))
    q, k, v = (linear(f"layers.0.self_attn.{p}_proj", x).view(n, -1, head_dim).transpose(0, 1) for p in "qkv")
    q, k = rotate(q, theta), rotate(k, theta)
    k, v = (one.repeat_interleave(q.shape[0] // one.shape[0], dim=0) for one in (k, v))
    scores = (q @ k.transpose(1, 2)) / head_dim**0.5  # [heads, n, n]
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
    attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
    x = x + linear("layers.0.self_attn.o_proj", attended)
    normed = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * tensors["layers.0.post_attention_layernorm.weight"]
    gate, up = linear("layers.0.mlp.gate_proj", normed), linear("layers.0.mlp.up_proj", normed)
    return x + linear("layers.0.mlp.down_proj", gate * gate.sigmoid() * up)


def rotate(x: Tensor, theta: float) -> Tensor:
    """Llama's rotary embedding at positions 0, 1, ... x: [heads, n, head_dim]."""
    half = x.shape[-1] // 2
    frequencies = theta ** -(torch.arange(half).float() / half)  # in float32, as Llama has them
    angles = (torch.arange(x.shape[1]).float()[:, None] * frequencies).to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)


@torch.no_grad()
def true_features(target: Target, tokens: list[int]) -> Tensor:
    """The target's last hidden states by transformers alone, [n, h]."""
    return target.base(input_ids=torch.tensor([tokens]), use_cache=False)[0][0]


@torch.no_grad()
def reference_draft(target: Target, head: torch.nn.Module, tokens: list[int], depth: int) -> list[int]:
    """The greedy chain that the head drafts after `tokens`, every step recomputed from the start."""
    sizes, tensors = head.sizes, head.state_dict()
    features, drafted = true_features(target, tokens[:-1]), []
    for _ in range(depth):
        embeddings = target.model.get_input_embeddings()(torch.tensor([*tokens[1:], *drafted]))
        predicted = reference_head(
            tensors,
            embeddings,
            features,
            head_dim=sizes.head_dim,
            eps=sizes.rms_norm_eps,
            theta=sizes.rope["rope_theta"],
        )[-1:]
        drafted.append(int(target.head(predicted[None])[0, 0].argmax()))
        features = torch.cat((features, predicted))
    return drafted
