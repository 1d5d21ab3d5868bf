"""The EAGLE-3 draft head (EAGLE-3, arXiv 2503.01840, section 3.1).

Hidden states of several of the target's layers, low to high, are fused into one vector of the head's width. A decoder
layer reads it beside the *embedding of the next token*, each behind a norm of its own; its attention takes both, so
its queries, keys and values read twice the width. Its output is turned into a distribution over the head's own, smaller
vocabulary, and is fed back in place of a fused vector when the next token is drafted: nothing ties it to the target's
hidden states. Positions are those of the hidden states, one behind the target's, as with EAGLE's first heads.

What published heads differ in: `Eagle3Sizes` says it; in which files it is found, `layouts.py`.

Shapes: b batch, n rows, t width of the target's hidden states, h width of the head (t in nearly every head).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.draft_vocabulary import PartialHead
from slipstream.errors import InputError
from slipstream.methods.eagle.head import PROJECTIONS, HeadSizes
from slipstream.target.arguments import cache_argument
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

MLP = ("gate_proj", "up_proj", "down_proj")
_CACHE = cache_argument(LlamaDecoderLayer.forward)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Sizes:
    """What determines the tensors of a head and how they are run."""

    layer: HeadSizes
    """Of a decoder layer; its hidden size is the head's. Biases: of the attention's and the MLP's projections."""
    target_size: int
    """Width of the target's hidden states."""
    states: tuple[int, ...]
    """Which hidden states are read, in the order in which they are fused: j for those entering layer j."""
    draft_vocab_size: int
    num_layers: int = 1
    """Decoder layers; those after the first are ordinary ones."""
    own_lm_head: bool = False
    """Whether the head has an LM head; otherwise it drafts with rows of the target's."""
    own_embeddings: int | None = None
    """Rows of the head's own embeddings; None: the target's serve."""
    head_norms: bool = False
    """Whether queries and keys are normalised, as in Qwen3."""
    norm_before_residual: bool = False
    """Whether the first layer's residual is the fused vector after its norm."""
    norm_before_fc: bool = False
    """Whether a norm stands before the fusion, over all hidden states together."""
    fc_norm: bool = False
    """Whether each of them has a norm of its own there (EAGLE-3.1)."""
    norm_feedback: bool = False
    """Whether the output is fed back after the last norm, as the LM head reads it (EAGLE-3.1), or before it."""

    @property
    def hidden_size(self) -> int:
        """Width of the head."""
        return self.layer.hidden_size


def default_states(num_layers: int) -> tuple[int, int, int]:
    """What all published codes read unless told otherwise, of a target with so many layers.

    Targets of fewer than six layers, for which that makes no sense, are read at a quarter, at half and before the last.
    """
    if num_layers < 6:
        return num_layers // 4, num_layers // 2, num_layers - 1
    return 2, num_layers // 2, num_layers - 3


class Eagle3Head(nn.Module):
    """The head's own weights, under the names of the published checkpoints; the target's are passed in."""

    def __init__(self, sizes: Eagle3Sizes, ids: Tensor | None = None) -> None:
        """A head with fresh weights, in float32. ids: [draft_vocab_size] int64, ascending: the target's ids of the
        tokens that are drafted; None: all of them.
        """
        super().__init__()
        self.sizes, self.ids = sizes, ids
        self.confidence = ConfidenceScale()
        """Found by calibration, stored with the head."""
        width, eps = sizes.hidden_size, sizes.layer.rms_norm_eps
        config = _layer_config(sizes)
        layers = [_with_biases(_decoder_layer(config, index), sizes.layer) for index in range(sizes.num_layers)]
        read = len(sizes.states) * sizes.target_size
        self.input_norm = LlamaRMSNorm(read, eps) if sizes.norm_before_fc else None
        norms = (LlamaRMSNorm(sizes.target_size, eps) for _ in sizes.states)
        self.fc_norm = nn.ModuleList(norms) if sizes.fc_norm else None
        self.fc = nn.Linear(read, width, bias=False)
        self.layers = nn.ModuleList([FirstLayer(layers[0], width, eps, sizes.norm_before_residual), *layers[1:]])
        self.norm = LlamaRMSNorm(width, eps)
        self.lm_head = nn.Linear(width, sizes.draft_vocab_size, bias=False) if sizes.own_lm_head else None
        rows = sizes.own_embeddings
        self.embed_tokens = None if rows is None else nn.Embedding(rows, width)
        self.rotary = LlamaRotaryEmbedding(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    @property
    def config(self) -> Any:
        """The layers', which names their attention function."""
        layer: Any = self.layers[0]
        return layer.self_attn.config

    def place(self, device: torch.device, dtype: torch.dtype) -> Eagle3Head:
        """Move to a device and a dtype; the rotary frequencies stay in float32, where rounding them costs positions."""
        for name, module in self.named_children():
            module.to(device) if name == "rotary" else module.to(device, dtype)
        self.ids = None if self.ids is None else self.ids.to(device)
        return self

    def fuse(self, states: Tensor) -> Tensor:
        """What the head reads of a token: its hidden states [.., n x t], as one vector [.., h]."""
        if self.input_norm is not None:
            states = self.input_norm(states)
        if self.fc_norm is not None:
            parts = torch.split(states, self.sizes.target_size, dim=-1)
            states = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        fused: Tensor = self.fc(states)
        return fused

    def forward(
        self,
        embeddings: Tensor,  # [b, n, h] of the tokens after the features
        features: Tensor,  # [b, n, h] fused hidden states, or what this returned for a drafted token
        positions: Tensor,  # [b, n] int64, of the features
        mask: Tensor | None,  # [b or 1, 1, n, rows in cache + n]: additive in the head's dtype, or bool (may attend)
        cache: Any = None,  # a transformers Cache that holds the keys and values of earlier rows, and takes these
    ) -> Tensor:
        """What is fed back for the tokens whose embeddings were given, [b, n, h]; see `before_lm_head`."""
        how = {
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": cache is not None,
            "position_embeddings": self.rotary(features, positions),
            _CACHE: cache,
        }
        first, *further = self.layers
        hidden: Tensor = first(embeddings, features, **how)
        for layer in further:
            hidden = layer(hidden, **how)
        return self.norm(hidden) if self.sizes.norm_feedback else hidden

    def before_lm_head(self, output: Tensor) -> Tensor:
        """What the LM head reads, of what `forward` returned. Both [b, n, h]."""
        normed: Tensor = output if self.sizes.norm_feedback else self.norm(output)
        return normed

    def scorer(self, target: Target) -> Callable[[Tensor], Tensor]:
        """The LM head: logits [b, n, draft vocabulary] of what `before_lm_head` returned; differentiable in that.

        Raises InputError where the head drafts with rows of the target's LM head and none can be taken out of it.
        """
        own = self.lm_head
        if own is not None:
            return lambda hidden: target.upcast(own(hidden))
        score = target.head if self.ids is None else PartialHead(target, self.ids).score
        return lambda hidden: score(hidden.to(target.dtype))

    def embedder(self, target: Target) -> Any:
        """The module of the embeddings."""
        return target.model.get_input_embeddings() if self.embed_tokens is None else self.embed_tokens

    def new_cache(self, device: torch.device, limit: int | None) -> KVCache:
        """An empty cache for the head's layers. limit: rows never needed beyond."""
        return KVCache(self.sizes.num_layers, device, limit)


class FirstLayer(nn.Module):
    """A decoder layer whose attention reads the embedding of the next token beside the hidden state."""

    def __init__(self, plain: Any, width: int, eps: float, norm_before_residual: bool) -> None:
        """plain: an ordinary layer, whose parts this one takes."""
        super().__init__()
        self.self_attn, self.mlp = plain.self_attn, plain.mlp
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(self.self_attn, name)
            setattr(self.self_attn, name, nn.Linear(2 * width, old.out_features, bias=old.bias is not None))
        self.input_layernorm, self.hidden_norm = plain.input_layernorm, LlamaRMSNorm(width, eps)
        self.post_attention_layernorm = plain.post_attention_layernorm
        self._norm_before_residual = norm_before_residual

    def forward(self, embeddings: Tensor, hidden: Tensor, **how: Any) -> Tensor:
        """[b, n, h] of as much."""
        normed = self.hidden_norm(hidden)
        residual = normed if self._norm_before_residual else hidden
        attended = self.self_attn(torch.cat((self.input_layernorm(embeddings), normed), dim=-1), **how)[0]
        hidden = residual + attended
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


def _layer_config(sizes: Eagle3Sizes) -> Any:
    """The layers' configuration as transformers has it."""
    layer = sizes.layer
    return (Qwen3Config if sizes.head_norms else LlamaConfig)(
        hidden_size=layer.hidden_size,
        intermediate_size=layer.intermediate_size,
        num_attention_heads=layer.num_heads,
        num_key_value_heads=layer.num_kv_heads,
        head_dim=layer.head_dim,
        num_hidden_layers=sizes.num_layers,
        rms_norm_eps=layer.rms_norm_eps,
        hidden_act=layer.hidden_act,
        rope_parameters=dict(layer.rope),
        attn_implementation="sdpa",
    )


def _decoder_layer(config: Any, index: int) -> nn.Module:
    kind: Any = Qwen3DecoderLayer if isinstance(config, Qwen3Config) else LlamaDecoderLayer
    layer: nn.Module = kind(config, layer_idx=index)
    return layer


def _with_biases(layer: Any, sizes: HeadSizes) -> Any:
    """The layer with biases where the sizes name them, and nowhere else."""
    for holder, names in ((layer.self_attn, PROJECTIONS), (layer.mlp, MLP)):
        for name in names:
            plain = getattr(holder, name)
            setattr(holder, name, nn.Linear(plain.in_features, plain.out_features, bias=name in sizes.biases))
    return layer


def check_embeddings(sizes: Eagle3Sizes, target: Target) -> None:
    """Raise InputError for a head that would need embeddings of its own and has none."""
    width = int(target.model.get_input_embeddings().weight.shape[1])
    if sizes.own_embeddings is None and width != sizes.hidden_size:
        raise InputError(
            f"a head of width {sizes.hidden_size} needs embeddings of that width, but it has none of its own and "
            f"those of {target.name} have width {width}; give a head with embed_tokens.weight"
        )
