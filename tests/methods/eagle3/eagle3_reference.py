"""A slow, independent EAGLE-3 head, written from the published description: whole sequences, no cache, no transformers.

It reads a checkpoint's own tensors: `first` is what stands before those of the first layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.eagle.eagle_reference import rotate
from slipstream.target.target import Target


@dataclass(frozen=True)
class Reference:
    """A head as its checkpoint has it."""

    tensors: Mapping[str, Tensor]
    first: str
    states: Sequence[int]
    head_dim: int
    eps: float = 1e-5
    theta: float = 10000.0
    norm_before_residual: bool = False
    norm_feedback: bool = False

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0.0)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.tensors[f"{name}.weight"]

    def fused(self, states: Tensor) -> Tensor:
        """[n, h] of hidden states [n, k, t]."""
        if "fc_norm.0.weight" in self.tensors:
            states = torch.stack([self._norm(f"fc_norm.{i}", states[:, i]) for i in range(states.shape[1])], dim=1)
        flat = states.flatten(1)
        return self._linear("fc", self._norm("input_norm", flat) if "input_norm.weight" in self.tensors else flat)

    def outputs(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """What the layers make of rows at positions 0, 1, ..., [n, h]; before the last norm."""
        normed = self._norm(f"{self.first}hidden_norm", features)
        both = torch.cat((self._norm(f"{self.first}input_layernorm", embeddings), normed), dim=1)
        x = self._layer(self.first, both, normed if self.norm_before_residual else features)
        index = 1
        while f"layers.{index}.mlp.up_proj.weight" in self.tensors:
            layer = f"layers.{index}."
            x = self._layer(layer, self._norm(f"{layer}input_layernorm", x), x)
            index += 1
        return x

    def _layer(self, layer: str, x: Tensor, residual: Tensor) -> Tensor:
        n = x.shape[0]
        q, k, v = (self._linear(f"{layer}self_attn.{p}_proj", x).view(n, -1, self.head_dim) for p in "qkv")
        if f"{layer}self_attn.q_norm.weight" in self.tensors:
            q, k = self._norm(f"{layer}self_attn.q_norm", q), self._norm(f"{layer}self_attn.k_norm", k)
        q, k, v = (one.transpose(0, 1) for one in (q, k, v))
        q, k = rotate(q, self.theta), rotate(k, self.theta)
        k, v = (one.repeat_interleave(q.shape[0] // one.shape[0], dim=0) for one in (k, v))
        scores = (q @ k.transpose(1, 2)) / self.head_dim**0.5
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
        attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
        x = residual + self._linear(f"{layer}self_attn.o_proj", attended)
        normed = self._norm(f"{layer}post_attention_layernorm", x)
        gate, up = self._linear(f"{layer}mlp.gate_proj", normed), self._linear(f"{layer}mlp.up_proj", normed)
        return x + self._linear(f"{layer}mlp.down_proj", gate * gate.sigmoid() * up)

    def logits(self, outputs: Tensor, target: Target) -> Tensor:
        """[n, draft vocabulary]."""
        weight = self.tensors.get("lm_head.weight")
        if weight is None:
            weight = target.model.get_output_embeddings().weight
            weight = weight if "d2t" not in self.tensors else weight[self.ids(target)]
        return self._norm("norm", outputs) @ weight.T

    def ids(self, target: Target) -> Tensor:
        """[draft vocabulary], the target's ids."""
        offsets = self.tensors.get("d2t")
        return torch.arange(target.vocab_size) if offsets is None else torch.arange(len(offsets)) + offsets

    def fed_back(self, outputs: Tensor) -> Tensor:
        return self._norm("norm", outputs) if self.norm_feedback else outputs

    def embeddings(self, tokens: Sequence[int], target: Target) -> Tensor:
        own = self.tensors.get("embed_tokens.weight")
        return target.model.get_input_embeddings()(torch.tensor(tokens)) if own is None else own[list(tokens)]

    def after(self, target: Target, tokens: list[int], path: Sequence[int]) -> Tensor:
        """[1, h], what the layers make of the last token of `tokens` or of a drafted path after them."""
        features = self.fused(true_states(target, tokens[:-1], self.states))
        for depth in range(len(path) + 1):
            output = self.outputs(features, self.embeddings([*tokens[1:], *path[:depth]], target))[-1:]
            features = torch.cat((features, self.fed_back(output)))
        return output

    def draft(self, target: Target, tokens: list[int], depth: int) -> list[int]:
        """The greedy chain that the head drafts after `tokens`, every step recomputed from the start."""
        drafted: list[int] = []
        for _ in range(depth):
            logits = self.logits(self.after(target, tokens, drafted), target)
            drafted.append(int(self.ids(target)[logits[0].argmax()]))
        return drafted


@torch.no_grad()
def true_states(target: Target, tokens: list[int], states: Sequence[int]) -> Tensor:
    """The target's hidden states by transformers alone, [n, k, t]."""
    found = target.model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack([found[index][0] for index in states], dim=1)
