"""Tiny randomly initialised models of every target family, for tests that must hold on all of them.

`FAMILIES` are decoded losslessly; `REFUSED` must be turned away at load, for the stated reason. Every model has 2-4
layers, hidden size 32, a vocabulary of 64, float64 weights and no EOS token, and every window is shorter than the
prompts. Weights are drawn with a standard deviation far above the usual 0.02, so that context decides the next token
and greedy text does not settle on one token.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 64
WINDOW = 8
CONTEXT = 128

FULL_THEN_SLIDING = ["full_attention", "sliding_attention"]
SLIDING_THEN_FULL = ["sliding_attention", "full_attention"]

# Names differ between the two generations of transformers configs; each model type understands one of them.
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
}
_FALCON_SIZES = {
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
_GPT_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 48}


def build(
    model_type: str,
    *,
    sizes: dict[str, Any] = _SIZES,
    attention: str = "sdpa",
    weight_std: float = 0.5,
    seed: int = 3,
    **settings: Any,
) -> PreTrainedModel:
    """A float64 model of `model_type` in eval mode; `settings` override the sizes of its config."""
    config = AutoConfig.for_model(
        model_type,
        **{
            **sizes,
            "vocab_size": VOCAB_SIZE,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            **settings,
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # older model files of transformers use torch.jit.script
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float64)
    randomise(model, weight_std, seed)
    if hasattr(model, "set_experts_implementation") and _has_experts(model):
        model.set_experts_implementation("eager")  # the grouped kernels have no float64
    model.generation_config.eos_token_id = None
    return model.eval()


def _has_experts(model: PreTrainedModel) -> bool:
    return any("expert" in name for name, _ in model.named_parameters())


@torch.no_grad()
def randomise(model: PreTrainedModel, weight_std: float, seed: int) -> None:
    """Draw every matrix anew and perturb every vector (norm weights, biases, sinks) around its initial value."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):  # tied weights appear once
        noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64).to(parameter.dtype)
        if parameter.ndim > 1:
            parameter.copy_(noise * weight_std)
        else:
            parameter.add_(noise * (0.1 if name.endswith("bias") else 0.25))


Builder = Callable[[], PreTrainedModel]


def family(model_type: str, **settings: Any) -> Builder:
    """A builder, so that a table of families costs nothing until a test asks for one."""
    return functools.partial(build, model_type, **settings)


def rope(rope_type: str, **settings: Any) -> dict[str, Any]:
    """`rope_parameters` of the given type with a base small enough to matter within a short context."""
    return {"rope_type": rope_type, "rope_theta": 100.0, **settings}


_GPT = {"sizes": _GPT_SIZES}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

PLAIN: dict[str, Builder] = {
    "llama": family("llama"),
    "qwen2": family("qwen2"),
    "qwen3": family("qwen3"),
    "gemma": family("gemma"),
    "granite": family("granite", embedding_multiplier=2.0, residual_multiplier=0.7, logits_scaling=0.5),
    "olmo": family("olmo"),
    "olmo2": family("olmo2"),
    "smollm3": family("smollm3", no_rope_layer_interval=2),
    "glm": family("glm"),
    "glm4": family("glm4"),
    "cohere": family("cohere", logit_scale=0.5),
    "stablelm": family("stablelm"),
    "starcoder2": family("starcoder2", sliding_window=None),
    "phi": family("phi"),
    "gpt2": family("gpt2", **_GPT),
    "gptj": family("gptj", **_GPT, rotary_dim=4, attention="eager"),
    "gpt_neox": family("gpt_neox"),
    "gpt_bigcode": family("gpt_bigcode", **_GPT),
    "falcon": family("falcon", sizes=_FALCON_SIZES, alibi=False),
    "falcon-gqa": family(
        "falcon", sizes=_FALCON_SIZES, alibi=False, new_decoder_architecture=True, num_kv_heads=2, multi_query=False
    ),
    "opt": family("opt", ffn_dim=48, word_embed_proj_dim=32),
}

MOE: dict[str, Builder] = {
    "mixtral": family("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": family("qwen2_moe", **_MOE, shared_expert_intermediate_size=24),
    "qwen3_moe": family("qwen3_moe", **_MOE),
    "olmoe": family("olmoe", num_experts=4, num_experts_per_tok=2),
    "deepseek_v3": family(
        "deepseek_v3",
        num_key_value_heads=4,
        head_dim=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
        q_lora_rank=12,
        kv_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
    ),
}

WINDOWED: dict[str, Builder] = {
    "gemma2": family(
        "gemma2",
        attention="eager",
        sliding_window=WINDOW,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": family("gemma3_text", sliding_window=WINDOW, layer_types=SLIDING_THEN_FULL, query_pre_attn_scalar=8),
    "olmo3": family("olmo3", sliding_window=WINDOW, layer_types=SLIDING_THEN_FULL),
    "exaone4": family("exaone4", sliding_window=WINDOW, layer_types=SLIDING_THEN_FULL),
    "cohere2": family("cohere2", sliding_window=WINDOW, layer_types=SLIDING_THEN_FULL, logit_scale=0.5),
    "ministral": family("ministral", sliding_window=WINDOW, layer_types=SLIDING_THEN_FULL),
    "qwen2-mixed": family("qwen2", use_sliding_window=True, sliding_window=WINDOW, layer_types=FULL_THEN_SLIDING),
    "llama4": family(
        "llama4_text",
        num_hidden_layers=3,
        intermediate_size_mlp=48,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "chunked_attention", "full_attention"],
        no_rope_layers=[1, 1, 0],
    ),
    "llama4-temperature": family(
        "llama4_text",
        num_hidden_layers=2,
        intermediate_size_mlp=48,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
        floor_scale=32,  # NoPE layers scale queries by their slot in the cache, in steps of this many slots
        attn_scale=-3.0,  # turns the sign of attention at the first step, so that it shows
    ),
    "gpt_oss": family(
        "gpt_oss",
        attention="eager",
        sliding_window=WINDOW,
        layer_types=SLIDING_THEN_FULL,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters=rope("default"),
    ),
    "mistral": family("mistral", sliding_window=WINDOW),
    "phi3": family("phi3", sliding_window=WINDOW),
    "starcoder2-window": family("starcoder2", sliding_window=WINDOW),
    "mixtral-window": family("mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW),
}

ORIGINAL_CONTEXT = 32
ROPE: dict[str, Builder] = {
    "llama3-rope": family(
        "llama",
        rope_parameters=rope(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=ORIGINAL_CONTEXT,
        ),
    ),
    "yarn-rope": family(
        "llama", rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL_CONTEXT)
    ),
    "linear-rope": family("llama", rope_parameters=rope("linear", factor=4.0)),
    "dynamic-rope": family(
        "llama",
        max_position_embeddings=ORIGINAL_CONTEXT,
        rope_parameters=rope("dynamic", factor=4.0),
    ),
    "longrope": family(
        "phi3",
        sliding_window=None,
        original_max_position_embeddings=ORIGINAL_CONTEXT,
        rope_parameters=rope(
            "longrope",
            short_factor=[1.0, 1.0, 1.0, 1.0],
            long_factor=[1.0, 2.0, 3.0, 4.0],
            original_max_position_embeddings=ORIGINAL_CONTEXT,
        ),
    ),
}

FAMILIES: dict[str, Builder] = {**PLAIN, **MOE, **WINDOWED, **ROPE}

# Beyond the original length each key keeps the base of the step that cached it, so plain decoding with a cache is the
# reference there and a full-sequence recomputation is not.
DYNAMIC_ROPE = ("dynamic-rope",)


def transformers_greedy(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy text by transformers' own `generate`."""
    ids = torch.tensor([prompt])
    # Crossing the original length of a longrope, transformers 5.17 forgets the text with the cache; 5.23 does not.
    rope_parameters = getattr(model.config, "rope_parameters", None) or {}
    use_cache = rope_parameters.get("rope_type") != "longrope"
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=num_tokens, use_cache=use_cache)
    return out[0, len(prompt) :].tolist()


def prompt_ids(length: int, seed: int = 0) -> list[int]:
    """Random token ids that avoid the special ids 0 and 1."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB_SIZE, (length,), generator=rng).tolist()


# name -> (builder, what the refusal must say)
REFUSED: dict[str, tuple[Builder, str]] = {
    "mpt": (
        family("mpt", sizes={"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}, attention="eager"),
        "tree|position",
    ),
    "gpt_neo": (
        family(
            "gpt_neo",
            sizes={"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": CONTEXT},
            attention="eager",
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW,
        ),
        "tree|mask",
    ),
    "rwkv": (
        family(
            "rwkv",
            sizes={"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
            attention="eager",
        ),
        "state|roll|cache",
    ),
    "bloom": (family("bloom", sizes={"hidden_size": 32, "n_layer": 2, "n_head": 4}, attention="eager"), "mask|tree"),
    "falcon-alibi": (family("falcon", sizes=_FALCON_SIZES, alibi=True), "mask|tree|alibi"),
    "mamba": (
        family("mamba", sizes={"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, attention="eager"),
        "state|roll|cache",
    ),
    "jamba": (
        family(
            "jamba",
            num_hidden_layers=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=4,
            use_mamba_kernels=False,
            mamba_d_state=4,
            mamba_d_conv=4,
        ),
        "state|roll|cache",
    ),
    "qwen3_next": (
        family(
            "qwen3_next",
            **_MOE,
            shared_expert_intermediate_size=24,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"],
        ),
        "state|roll|cache|linear",
    ),
    "falcon_h1": (
        family("falcon_h1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1),
        "state|roll|cache",
    ),
}
