"""Tiny models of random weights, of every class of `transformers` that continues text.

A model has 2 to 4 layers, a width of 32 and a vocabulary of 64, float64 weights and no end token; windows and chunks
are shorter than the prompts. Sizes are read off the default configuration, part by part: what is named there as in
`SIZES` is made small, lists with an entry a layer are cut so that every kind of layer is left, and `EXCEPTIONS` holds
what a family needs beside that.
"""

from __future__ import annotations

import copy
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
    **dict.fromkeys(
        (
            "hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "embedding_size",
            "word_embed_proj_dim", "dim_model", "input_embedding_size", "output_embedding_size", "out_hidden_size",
            "hidden_dim", "lru_width", "decoder_hidden_size", "projection_dim", "projector_hidden_size",
            "text_hidden_size", "attention_hidden_size",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff", "d_inner", "dim_ff",
            "decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp", "dff", "mlp_dim",
            "dense_intermediate_size",
        ),
        48,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size", "shared_expert_intermediate_size", "expert_intermediate_size",
            "expert_ffn_hidden_size", "shared_intermediate_size", "moe_ffn_hidden_size",
        ),
        24,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers", "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
            "encoder_attention_heads", "swa_num_attention_heads", "rotary_dim", "index_topk",
            "linear_num_value_heads", "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
            "state_size", "mamba_d_state", "mamba_n_heads", "mamba_num_heads", "ssm_state_size", "num_image_tokens",
            "mm_tokens_per_image",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "n_layer", "n_layers", "num_layers", "depth", "decoder_layers", "encoder_layers", "num_decoder_layers",
            "num_encoder_layers", "num_key_value_heads", "num_kv_heads", "num_global_key_value_heads",
            "swa_num_key_value_heads", "index_n_heads", "linear_num_key_heads", "num_experts_per_tok",
            "num_experts_per_token", "moe_k", "moe_top_k", "top_k_experts", "moe_topk", "zero_expert_num",
            "num_codebooks",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "head_dim", "kv_channels", "global_head_dim", "swa_head_dim", "v_head_dim", "qk_nope_head_dim",
            "qk_rope_head_dim", "index_head_dim", "linear_key_head_dim", "linear_value_head_dim",
            "query_pre_attn_scalar", "hidden_size_per_layer_input", "mamba_head_dim", "chunk_size",
        ),
        8,
    ),
    **dict.fromkeys(
        (
            "qk_head_dim", "mamba_d_head", "num_position_embeddings",
        ),
        16,
    ),
    **dict.fromkeys(
        (
            "q_lora_rank", "kv_lora_rank",
        ),
        12,
    ),
    **dict.fromkeys(
        (
            "n_group", "topk_group", "n_groups", "first_k_dense_replace", "mamba_n_groups",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            "vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "n_words",
        ),
        VOCAB_SIZE,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings", "n_positions", "n_ctx", "max_target_positions", "max_source_positions",
            "max_seq_len",
        ),
        CONTEXT,
    ),
    **dict.fromkeys(
        (
            "use_mamba_kernels",
        ),
        False,
    ),
    **dict.fromkeys(
        (
            "mamba_d_ssm",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "image_size",
        ),
        28,
    ),
    **dict.fromkeys(
        (
            "patch_size",
        ),
        14,
    ),
    **dict.fromkeys(
        (
            "sliding_window", "attention_chunk_size", "attention_window_size", "local_window_size",
        ),
        WINDOW,
    ),
}  # fmt: skip

ROPE = {"rope_type": "default", "rope_theta": 100.0}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bert-generation": {"is_decoder": True},
    "blt": {"encoder_hash_byte_group_vocab": 60, "encoder_hash_byte_group_size": [3], "max_patch_length": 4},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dots3_note": {"vision_config": {"adapter_in_dim": 32}, "audio_config": {"adapter_input_size": 32}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    **{
        name: {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}}
        for name in (
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen2_5_omni_thinker",
            "cosmos3_edge",
            "paddleocr_vl",
        )
    },
    **{
        name: {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}}}
        for name in ("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr", "glm5_next")
    },
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"token_budget": 8, "compress_ratio": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16)},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX", "is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
    **{
        name: {"is_decoder": True}
        for name in (
            "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
            "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
        )
    },
}  # fmt: skip
"""By model type: settings beside `SIZES`. Classes that are encoders by default are told to be decoders."""

SPECIAL = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


IMAGE_TEXT = " (image-text)"
"""After the name of a type that `AutoModelForCausalLM` loads as another class."""


def names() -> list[str]:
    """Every model type that `AutoModelForCausalLM` or `AutoModelForImageTextToText` loads, one a class."""
    text, image_text = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    further = (
        name if name not in text else name + IMAGE_TEXT for name in image_text if text.get(name) != image_text[name]
    )
    return [*text, *further]


def tiny(name: str, *, seed: int = 3, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The model of a name, of random weights drawn by `seed`."""
    config = tiny_config(name.removesuffix(IMAGE_TEXT))
    auto: Any = AutoModelForCausalLM if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForImageTextToText
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: PreTrainedModel = auto.from_config(config, attn_implementation="sdpa", dtype=dtype)
        except ValueError:
            model = auto.from_config(config, attn_implementation="eager", dtype=dtype)
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


def disturbed(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that often says what the model says."""
    twin = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point() and parameter.numel() > 1:
                noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64).to(parameter.dtype)
                parameter += 0.05 * noise * parameter.std()
    return twin


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model of a type."""
    return _shrunk(CONFIG_MAPPING[model_type], EXCEPTIONS.get(model_type, {}))


def _shrunk(kind: type[PreTrainedConfig], exceptions: dict[str, Any]) -> PreTrainedConfig:
    usual = kind()
    named = vars(usual)
    sizes = {
        name: size for name, size in SIZES.items() if isinstance(named.get(name), int | float | None) and name in named
    }
    sizes = {name: size for name, size in sizes.items() if named[name] is not None or name == "head_dim"}
    if "kv_lora_rank" in named:  # latent attention has as many keys as queries
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
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
    left = next(
        (sizes[name] for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if name in sizes), 0
    )
    return {
        name: _cut(value, left)
        for name, value in vars(usual).items()
        if isinstance(value, list) and depth and len(value) == depth
    }


def _cut(entries: list[Any], count: int) -> list[Any]:
    kinds = [entry for place, entry in enumerate(entries) if entry not in entries[:place]]
    return (kinds * count)[:count]
