"""The draft heads of Hydra and Hydra++ (Hydra, arXiv 2402.05109, sections 3 and 4).

From the target's feature of token t (its hidden state after the final norm), head i = 0, 1, ... predicts token
t + 2 + i. Unlike Medusa's heads it knows what stands between: its input is concat(feature of t, embeddings of tokens
t + 1 ... t + 1 + i), drafted ones among them. A head is a residual block that narrows this input to the hidden size,
more blocks, all of them *one* block applied repeatedly, and an LM head: its own, or the target's, which is our addition
and keeps the heads of small targets small.

Hydra++ (`prefix-mlp`) puts a Llama decoder layer with a final norm before the heads: it reads the features of the whole
text so far, token t's at position t, so the heads start from more than one feature.

The target's embedding module is used as it is: where it scales, the heads get scaled embeddings.

Shapes: b batch, n rows, h hidden size, e width of the embeddings (h in nearly every model).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from slipstream.core.confidence import ConfidenceScale
from slipstream.errors import InputError, unknown_choice
from slipstream.methods.eagle.head import HeadSizes
from slipstream.target.arguments import cache_argument
from slipstream.target.cache import KVCache
from slipstream.target.target import Target

_CACHE = cache_argument(LlamaDecoderLayer.forward)
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # rolling ones would depend on the longest pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSizes:
    """What determines the tensors of the prefix layer and how they are run."""

    intermediate_size: int
    num_heads: int
    """Query heads of its attention."""
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0}, hash=False)
    """`rope_parameters` as transformers names them."""

    def __post_init__(self) -> None:
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads or self.head_dim < 2 or self.head_dim % 2:
            raise InputError(
                f"a prefix layer cannot have {self.num_heads} query heads, {self.num_kv_heads} key heads and a head "
                f"width of {self.head_dim}; the key heads must divide the query heads, the width must be even"
            )
        if self.hidden_act not in ACT2FN:
            raise unknown_choice("hidden_act", self.hidden_act, ACT2FN)
        if self.rope.get("rope_type") not in _FIXED_ROPE:
            raise InputError(
                f"a prefix layer with rope_type {self.rope.get('rope_type')!r} is not supported; "
                f"choose from {', '.join(_FIXED_ROPE)}"
            )

    @classmethod
    def like(cls, target: Target, intermediate_size: int | None = None) -> PrefixSizes:
        """Sizes of one of the target's own layers, where a Llama layer can have them. The official code takes these."""
        own = HeadSizes.like(target)
        return cls(
            intermediate_size=intermediate_size or own.intermediate_size,
            num_heads=own.num_heads,
            num_kv_heads=own.num_kv_heads,
            head_dim=own.head_dim,
            rms_norm_eps=own.rms_norm_eps,
            rope=rope_like(target),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HydraSizes:
    """What determines the tensors of a set of heads and how they are run."""

    hidden_size: int
    """Width of the target's features."""
    embedding_size: int
    """Width of the target's embeddings."""
    num_heads: int = 4
    """Draft heads, which is also the deepest level they can draft."""
    num_layers: int = 1
    """Residual blocks of a head: the first, and one more applied num_layers - 1 times."""
    prefix: PrefixSizes | None = None
    """The prefix layer of Hydra++; None: Hydra."""
    vocab_size: int | None = None
    """Rows of the heads' own LM heads; None: the target's LM head is used."""
    feature_offset: int = 0
    """0: features after the final norm; k > 0: hidden states that enter the k-th layer from the end."""

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of Hydra heads is {getattr(self, name)}; it must be at least 1")

    def input_size(self, index: int) -> int:
        """Width of head `index`'s input."""
        return self.hidden_size + (index + 1) * self.embedding_size


class ResBlock(nn.Module):
    """x + SiLU(linear(x)); where the width changes, res_connection(x) stands for x."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, output_size)
        nn.init.zeros_(self.linear.weight)  # as the released code: the block starts without a say of its own
        self.res_connection = nn.Linear(input_size, output_size) if input_size != output_size else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.res_connection(x)
        return kept + nn.functional.silu(self.linear(x))


class HeadMLP(nn.Module):
    """One head without its LM head."""

    def __init__(self, sizes: HydraSizes, index: int, dropout: float) -> None:
        super().__init__()
        self.first = ResBlock(sizes.input_size(index), sizes.hidden_size)
        self.num_further = sizes.num_layers - 1
        self.further = ResBlock(sizes.hidden_size, sizes.hidden_size) if self.num_further else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., input size of the head]. Returns [..., h]."""
        x = self.first(self.dropout(x))
        for _ in range(self.num_further):
            assert self.further is not None
            x = self.further(self.dropout(x))
        return x


class PrefixLayer(nn.Module):
    """The decoder layer of Hydra++ over the features of the text so far, with its final norm."""

    def __init__(self, hidden_size: int, sizes: PrefixSizes) -> None:
        super().__init__()
        config = LlamaConfig(
            hidden_size=hidden_size,
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
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, layer_idx=0)])
        self.norm = LlamaRMSNorm(hidden_size, eps=sizes.rms_norm_eps)
        self.config = config
        """The layer's."""
        self.renew_rotary()

    def renew_rotary(self) -> None:
        """Make the rotary embedding, which no checkpoint holds, as layers that were laid out without memory need."""
        self.rotary = LlamaRotaryEmbedding(self.config)

    def forward(
        self,
        features: Tensor,  # [b, n, h]
        positions: Tensor,  # [b, n] int64
        mask: Tensor,  # [b or 1, 1, n, rows in cache + n]: additive in the layer's dtype, or bool (true: may attend)
        cache: Any = None,  # a transformers Cache that holds the keys and values of earlier rows, and takes these
    ) -> Tensor:
        """What the heads start from, [b, n, h]."""
        output = self.layers[0](
            features,
            attention_mask=mask,
            position_ids=positions,
            use_cache=cache is not None,
            **{_CACHE: cache},
            position_embeddings=self.rotary(features, positions),
        )
        normed: Tensor = self.norm(output)
        return normed


class HydraHeads(nn.Module):
    """The heads' own weights; the target's embedding and, where shared, its LM head are passed in."""

    def __init__(self, sizes: HydraSizes, dropout: float = 0.0) -> None:
        """Heads with fresh weights, in float32. dropout: while training, before every block and LM head."""
        super().__init__()
        self.sizes = sizes
        hidden, vocab = sizes.hidden_size, sizes.vocab_size
        self.prefix = PrefixLayer(hidden, sizes.prefix) if sizes.prefix is not None else None
        self.mlps = nn.ModuleList(HeadMLP(sizes, index, dropout) for index in range(sizes.num_heads))
        self.lm_heads = nn.ModuleList(nn.Linear(hidden, vocab) for _ in range(sizes.num_heads)) if vocab else None
        self.dropout = nn.Dropout(dropout)
        self.confidence = ConfidenceScale()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.mlps.parameters()).dtype

    def place(self, device: torch.device, dtype: torch.dtype) -> HydraHeads:
        """Move to a device and a dtype; the rotary frequencies stay in float32, where rounding them costs positions."""
        self.mlps.to(device, dtype)
        if self.lm_heads is not None:
            self.lm_heads.to(device, dtype)
        if self.prefix is not None:
            self.prefix.layers.to(device, dtype)
            self.prefix.norm.to(device, dtype)
            self.prefix.rotary.to(device)
        return self

    def logits(self, index: int, inputs: Tensor, target: Target) -> Tensor:
        """Head `index`'s logits [b, n, vocab] in float32 or better. inputs: [b, n, h + (index + 1) * e]."""
        hidden = self.dropout(self.mlps[index](inputs))  # [b, n, h]
        if self.lm_heads is None:
            return target.head(hidden.to(target.dtype))
        return target.upcast(self.lm_heads[index](hidden))

    def new_cache(self, device: torch.device, limit: int | None) -> KVCache:
        """An empty cache for the prefix layer. limit: rows never needed beyond."""
        return KVCache(1, device, limit)


def rope_like(target: Target) -> dict[str, Any]:
    """The target's own rotary embedding where its frequencies are fixed, else a plain one of its base."""
    parameters = dict(getattr(target.config, "rope_parameters", None) or {})
    parameters.pop("partial_rotary_factor", None)  # a Llama layer turns whole heads
    if parameters.get("rope_type") in _FIXED_ROPE and "rope_theta" in parameters:
        return parameters
    return dict(HeadSizes.like(target).rope)
