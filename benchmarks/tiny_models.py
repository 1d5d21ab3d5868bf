"""Tiny models of random weights, of every class of `transformers` that continues text.

A model has 2 to 4 layers, a width of 32 and a vocabulary of 64, float64 weights and no end token; windows and chunks
are shorter than the prompts. Sizes are read off the default configuration, part by part: what is named there as in
`SIZES` is made small, lists with an entry a layer are cut so that every kind of layer is left, and `EXCEPTIONS` holds
what a family needs beside that.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

VOCAB_SIZE, WINDOW, CONTEXT = 64, 8, 128

SIZES: dict[str, Any] = {
    # width
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "embed_dim": 32, "emb_dim": 32, "embedding_size": 32,
    "word_embed_proj_dim": 32, "dim_model": 32, "input_embedding_size": 32, "output_embedding_size": 32,
    "out_hidden_size": 32, "hidden_dim": 32, "lru_width": 32, "decoder_hidden_size": 32,
    "intermediate_size": 48, "ffn_hidden_size": 48, "ffn_dim": 48, "n_inner": 48, "d_ff": 48, "d_inner": 48, "dim_ff": 48,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "intermediate_size_mlp": 48, "dff": 48, "mlp_dim": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "expert_intermediate_size": 24,
    "expert_ffn_hidden_size": 24, "shared_intermediate_size": 24, "dense_intermediate_size": 48, "moe_ffn_hidden_size": 24,
    "projection_dim": 32, "projector_hidden_size": 32, "text_hidden_size": 32,
    # depth
    "num_hidden_layers": 4, "n_layer": 2, "n_layers": 2, "num_layers": 2, "depth": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2,
    # heads
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2,
    "head_dim": 8, "decoder_attention_heads": 4, "encoder_attention_heads": 4, "kv_channels": 8, "global_head_dim": 8,
    "num_global_key_value_heads": 2, "swa_head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "v_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "qk_head_dim": 12, "q_lora_rank": 12, "kv_lora_rank": 12,
    "rotary_dim": 4, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "attention_hidden_size": 32,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "query_pre_attn_scalar": 8,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_k": 2, "moe_top_k": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1, "n_groups": 1,
    "first_k_dense_replace": 1, "moe_topk": 2, "zero_expert_num": 2,
    # text
    "vocab_size": VOCAB_SIZE, "sliding_window": WINDOW, "attention_chunk_size": WINDOW, "attention_window_size": WINDOW,
    "local_window_size": WINDOW, "vocab_size_per_layer_input": VOCAB_SIZE, "hidden_size_per_layer_input": 8,
    "max_position_embeddings": CONTEXT, "n_positions": CONTEXT, "n_ctx": CONTEXT, "max_target_positions": CONTEXT,
    "max_source_positions": CONTEXT, "max_seq_len": CONTEXT, "decoder_vocab_size": VOCAB_SIZE, "n_words": VOCAB_SIZE,
    # states
    "state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_num_heads": 4,
    "mamba_head_dim": 8, "ssm_state_size": 4, "use_mamba_kernels": False, "mamba_d_ssm": 64, "chunk_size": 8,
    # pictures and sound
    "image_size": 28, "patch_size": 14, "num_image_tokens": 4, "mm_tokens_per_image": 4, "num_codebooks": 2,
    "num_position_embeddings": 16,
}  # fmt: skip

EXCEPTIONS: dict[str, dict[str, Any]] = {}

SPECIAL = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


def model_types() -> list[str]:
    """Every model type that `AutoModelForCausalLM` or `AutoModelForImageTextToText` loads."""
    return list(dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]))


def tiny(model_type: str, *, seed: int = 3) -> PreTrainedModel:
    """A model of a type, of random weights drawn by `seed`."""
    config = tiny_config(model_type)
    auto: Any = AutoModelForCausalLM if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForImageTextToText
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: PreTrainedModel = auto.from_config(config, attn_implementation="sdpa", dtype=torch.float64)
        except ValueError:
            model = auto.from_config(config, attn_implementation="eager", dtype=torch.float64)
    randomise(model, seed)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped kernels have no float64
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Draw every matrix anew, wide, so that context decides the next token, and disturb every vector."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64).to(parameter.dtype)
            parameter.copy_(0.5 * noise) if parameter.ndim > 1 else parameter.add_(
                noise * (0.1 if name.endswith("bias") else 0.25)
            )


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model of a type."""
    return _shrunk(CONFIG_MAPPING[model_type], EXCEPTIONS.get(model_type, {}))


def _shrunk(kind: type[PreTrainedConfig], exceptions: dict[str, Any]) -> PreTrainedConfig:
    usual = kind()
    named = vars(usual)
    sizes = {name: size for name, size in SIZES.items() if isinstance(named.get(name), int | float | None) and name in named}
    sizes = {name: size for name, size in sizes.items() if named[name] is not None or name == "head_dim"}
    sizes |= _layer_lists(usual, sizes)
    sizes |= {name: value for name, value in SPECIAL.items() if name in named}
    sizes |= {
        name: 60
        for name, value in named.items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= VOCAB_SIZE
    }
    for name, part in kind.sub_configs.items():
        own = type(getattr(usual, name, None))
        inner = own if issubclass(own, PreTrainedConfig) else part
        if inner is not None and issubclass(inner, PreTrainedConfig) and getattr(usual, name, None) is not None:
            sizes[name] = _shrunk(inner, exceptions.get(name, {})).to_dict()
    sizes |= {name: value for name, value in exceptions.items() if name not in kind.sub_configs}
    return kind(**sizes)


def _layer_lists(usual: PreTrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    """Lists of an entry a layer, cut to the layers that are left: one of each kind first."""
    depth = getattr(usual, "num_hidden_layers", None)
    left = next((sizes[name] for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if name in sizes), 0)
    return {
        name: _cut(value, left)
        for name, value in vars(usual).items()
        if isinstance(value, list) and depth and len(value) == depth
    }


def _cut(entries: list[Any], count: int) -> list[Any]:
    kinds = [entry for place, entry in enumerate(entries) if entry not in entries[:place]]
    return (kinds * count)[:count]
