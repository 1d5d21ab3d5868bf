"""Slow, independent Hydra heads, read straight from published tensors: one pass over the whole text, no cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.eagle.eagle_reference import rotate, true_features
from slipstream.target.target import Target

PREFIX = "prefix_embeding_layer."


def linear(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def reference_prefix(
    tensors: Mapping[str, Tensor], features: Tensor, *, heads: int, eps: float, theta: float
) -> Tensor:
    """The Llama layer of Hydra++ with its final norm over features [n, h] at positions 0, 1, ..."""
    layer, n = f"{PREFIX}layers.0.", features.shape[0]
    x = rms_norm(features, tensors[f"{layer}input_layernorm.weight"], eps)
    q, k, v = (linear(tensors, f"{layer}self_attn.{p}_proj", x) for p in "qkv")
    head_dim = q.shape[1] // heads
    q, k, v = (one.view(n, -1, head_dim).transpose(0, 1) for one in (q, k, v))
    q, k = rotate(q, theta), rotate(k, theta)
    k, v = (one.repeat_interleave(q.shape[0] // one.shape[0], dim=0) for one in (k, v))
    scores = (q @ k.transpose(1, 2)) / head_dim**0.5
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
    attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
    x = features + linear(tensors, f"{layer}self_attn.o_proj", attended)
    normed = rms_norm(x, tensors[f"{layer}post_attention_layernorm.weight"], eps)
    gate, up = linear(tensors, f"{layer}mlp.gate_proj", normed), linear(tensors, f"{layer}mlp.up_proj", normed)
    x = x + linear(tensors, f"{layer}mlp.down_proj", gate * gate.sigmoid() * up)
    return rms_norm(x, tensors[f"{PREFIX}norm.weight"], eps)


def reference_head(tensors: Mapping[str, Tensor], index: int, start: Tensor, embeddings: Tensor) -> Tensor:
    """Hidden state [h] of head `index`. start: [h]; embeddings: [index + 1, e]."""
    x = torch.cat((start, embeddings.flatten()))
    places = sorted({int(name.split(".")[2]) for name in tensors if name.startswith(f"hydra_mlp.{index}.")})
    for number, place in enumerate(places):
        block = f"hydra_mlp.{index}.{place}"
        inner = linear(tensors, f"{block}.linear", x)
        x = (linear(tensors, f"{block}.res_connection", x) if number == 0 else x) + inner * inner.sigmoid()
    return x


def reference_logits(tensors: Mapping[str, Tensor], index: int, hidden: Tensor, target: Target) -> Tensor:
    """Logits [vocab] by the head's own LM head where there is one, else by the target's."""
    own = next(
        (name for name in (f"hydra_lm_head.{index}.1", f"hydra_lm_head.{index}") if f"{name}.weight" in tensors), ""
    )
    return linear(tensors, own, hidden) if own else target.head(hidden[None, None])[0, 0]


@torch.no_grad()
def reference_draft(tensors: Mapping[str, Tensor], target: Target, tokens: list[int], depth: int) -> list[int]:
    """The greedy chain drafted after `tokens`, whose last is the root, every step recomputed from the start."""
    features = true_features(target, tokens[:-1])
    start = features[-1]
    if f"{PREFIX}norm.weight" in tensors:
        config = target.config
        theta = config.rope_parameters["rope_theta"]
        sizes = {"heads": config.num_attention_heads, "eps": config.rms_norm_eps, "theta": theta}
        start = reference_prefix(tensors, features, **sizes)[-1]
    path = [tokens[-1]]
    for index in range(depth):
        embeddings = target.model.get_input_embeddings()(torch.tensor(path))
        hidden = reference_head(tensors, index, start, embeddings)
        path.append(int(reference_logits(tensors, index, hidden, target).argmax()))
    return path[1:]
