"""The EAGLE draft head (EAGLE, arXiv 2401.15077, section 3.1; unchanged in EAGLE-2, arXiv 2406.16858).

A feature is the target's hidden state after the final norm, the input of its LM head. From the feature of token t and
the *embedding of token t + 1* the head predicts the feature of token t + 1, which the target's own LM head turns into
a distribution of token t + 2. The input is fc(concat(embedding, feature)); then follows one Llama decoder layer without
an input layer norm, for targets of every family; no final norm. Positions are those of the feature, so one behind the
target's: the row of token t + 1 stands at t. This offset is part of the published format, and removing it loses
acceptance.

The target's embedding module is used as it is: where it scales (Gemma's does), the head gets scaled embeddings; what a
model adds to them later (learned positions in GPT-2) the head does not see.

Shapes: b batch, n rows, h hidden size, e width of the embeddings (h in nearly every model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from slipstream.core.confidence import ConfidenceScale
from slipstream.drafting.draft_vocabulary import DraftVocabulary
from slipstream.errors import InputError
from slipstream.target.arguments import cache_argument
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_CACHE = cache_argument(LlamaDecoderLayer.forward)
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # rolling ones would depend on the longest pass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSizes:
    """What determines the tensors of a head and how they are run."""

    hidden_size: int
    """Width of the target's features."""
    embedding_size: int
    """Width of the target's embeddings."""
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    biases: frozenset[str] = frozenset({"fc"})
    """Which of `fc` and the attention's projections have a bias."""
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0}, hash=False)
    """`rope_parameters` as transformers names them."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise InputError(
                f"an EAGLE head cannot have {self.num_heads} query heads, {self.num_kv_heads} key heads and a head "
                f"width of {self.head_dim}; the key heads must divide the query heads, the width must be even"
            )
        if self.rope.get("rope_type") not in _FIXED_ROPE:
            raise InputError(
                f"an EAGLE head with rope_type {self.rope.get('rope_type')!r} is not supported; "
                f"choose from {', '.join(_FIXED_ROPE)}"
            )

    @classmethod
    def like(cls, target: Target, *, fc_bias: bool = True) -> HeadSizes:
        """Sizes of a new head for a target: those of one of its own layers where a Llama layer can have them.

        The head width is hidden size / heads, as the official code assumes.
        """
        config = target.config
        hidden = int(config.hidden_size)
        num_heads = _one_layers(config.num_attention_heads)
        if hidden % num_heads or hidden // num_heads % 2:
            num_heads = max(1, hidden // 64)
        num_kv_heads = _one_layers(getattr(config, "num_key_value_heads", None) or num_heads)
        return cls(
            hidden_size=hidden,
            embedding_size=target.model.get_input_embeddings().weight.shape[1],
            intermediate_size=_intermediate_size(config, hidden),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads if num_heads % num_kv_heads == 0 else num_heads,
            head_dim=hidden // num_heads,
            biases=frozenset({"fc"} if fc_bias else ()),
            rms_norm_eps=float(getattr(config, "rms_norm_eps", None) or 1e-6),
            rope={"rope_type": "default", "rope_theta": _rope_theta(config)},
        )


class EagleHead(nn.Module):
    """The head's own weights, under the names of the published checkpoints; the target's are passed in."""

    def __init__(self, sizes: HeadSizes) -> None:
        """A head with fresh weights, in float32."""
        super().__init__()
        self.sizes = sizes
        self.confidence = ConfidenceScale()
        """Found by calibration, stored with the head."""
        self.vocabulary: DraftVocabulary | None = None
        """What lies beside the head: tokens to draft from; None: all."""
        config = LlamaConfig(
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            num_hidden_layers=1,
            rms_norm_eps=sizes.rms_norm_eps,
            hidden_act=sizes.hidden_act,
            rope_parameters=dict(sizes.rope),
            attn_implementation="sdpa",
        )
        self.fc = nn.Linear(sizes.embedding_size + sizes.hidden_size, sizes.hidden_size, bias="fc" in sizes.biases)
        layer = LlamaDecoderLayer(config, layer_idx=0)
        layer.input_layernorm = nn.Identity()
        for name in PROJECTIONS:
            plain = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, nn.Linear(plain.in_features, plain.out_features, bias=name in sizes.biases))
        self.layers = nn.ModuleList([layer])
        self.rotary = LlamaRotaryEmbedding(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    @property
    def config(self) -> Any:
        """The layer's, which names its attention function."""
        layer: Any = self.layers[0]
        return layer.self_attn.config

    def place(self, device: torch.device, dtype: torch.dtype) -> EagleHead:
        """Move to a device and a dtype; the rotary frequencies stay in float32, where rounding them costs positions."""
        self.fc.to(device, dtype)
        self.layers.to(device, dtype)
        self.rotary.to(device)
        return self

    def forward(
        self,
        embeddings: Tensor,  # [b, n, e] of the tokens after the features
        features: Tensor,  # [b, n, h]
        positions: Tensor,  # [b, n] int64, of the features
        mask: Tensor,  # [b or 1, 1, n, rows in cache + n]: additive in the head's dtype, or bool (true: may attend)
        cache: Any = None,  # a transformers Cache that holds the keys and values of earlier rows, and takes these
    ) -> Tensor:
        """The predicted features of the tokens whose embeddings were given, [b, n, h]."""
        hidden = self.fc(torch.cat((embeddings, features), dim=-1))  # [b, n, h]
        output: Tensor = self.layers[0](
            hidden,
            attention_mask=mask,
            position_ids=positions,
            use_cache=cache is not None,
            **{_CACHE: cache},
            position_embeddings=self.rotary(hidden, positions),
        )
        return output

    def new_cache(self, device: torch.device, limit: int | None) -> KVCache:
        """An empty cache for the head's one layer. limit: rows never needed beyond."""
        return KVCache(1, device, limit)


def _intermediate_size(config: Any, hidden: int) -> int:
    """The target's own MLP width where it names one, else Llama's 8/3 of the hidden size."""
    for name in ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"):
        size = getattr(config, name, None)
        if size:
            return _one_layers(size)
    return (8 * hidden // 3 + 63) // 64 * 64


def _one_layers(size: int | Sequence[int]) -> int:
    """The size, of the first layer where a config names one for each."""
    return int(size[0] if isinstance(size, Sequence) else size)


def _rope_theta(config: Any) -> float:
    """The base of the target's rotary embedding; Llama's where none.

    Where kinds of layers differ it is that of full attention, and of another kind where that has no rotary embedding.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = {name: one for name, one in parameters.items() if isinstance(one, Mapping)}
    parameters = kinds.get("full_attention") or next(iter(kinds.values()), parameters)
    return float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0)
