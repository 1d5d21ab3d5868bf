"""Checkpoints of EAGLE heads in the layout of the official repository: `config.json` beside `model.safetensors`.

Older published heads have `pytorch_model.bin` instead. All sizes are read from the tensors; the config only says what
they cannot show (heads, RoPE, epsilon), and is overruled where both speak: published configs name wrong
`num_key_value_heads` and a `bias` that training ignored. Every tensor must be known, present and of the right shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.drafting.artefact_files import (
    CONFIG,
    PROVENANCE,
    SAFETENSORS,
    check_names,
    check_shapes,
    local_folder,
    read_config,
    read_tensors,
    recorded_confidence,
    save_tensors,
    stored_dtype,
    warn_of_other_target,
)
from slipstream.drafting.draft_vocabulary import VOCABULARY_FILE, load_vocabulary
from slipstream.errors import ArtifactError, InputError
from slipstream.methods.eagle.head import PROJECTIONS, EagleHead, HeadSizes
from slipstream.target.target import Target

_FILES = (SAFETENSORS, "pytorch_model.bin")
_WHAT = "EAGLE heads"

_LAYER = "layers.0."
_WEIGHTS = (
    "fc.weight",
    *(f"{_LAYER}self_attn.{name}.weight" for name in PROJECTIONS),
    *(f"{_LAYER}mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")),
    f"{_LAYER}post_attention_layernorm.weight",
)
_BIASES = {"fc": "fc.bias", **{name: f"{_LAYER}self_attn.{name}.bias" for name in PROJECTIONS}}
_EMBEDDING = "embed_tokens.weight"  # a copy of the target's, which is used instead
_IGNORED = (_EMBEDDING, f"{_LAYER}self_attn.rotary_emb.inv_freq")


def load_head(
    source: str | Path, target: Target, dtype: torch.dtype | None = None, *, stored: bool = False
) -> EagleHead:
    """The head of a folder or hub id, on the target's device and in its dtype, or another one.

    stored: in the dtype of the file. Raises ArtifactError for a checkpoint that is damaged, incomplete or of another
    size than the target; warns with ArtifactWarning if it records another target.
    """
    folder = local_folder(source, (*_FILES, VOCABULARY_FILE), _WHAT)
    config = read_config(folder, _WHAT)
    tensors = read_tensors(folder, _FILES, _WHAT)
    _check_names(folder, config, tensors)
    head = EagleHead(_sizes(folder, config, tensors, target))
    kept = {name: tensor for name, tensor in tensors.items() if name not in _IGNORED}
    check_shapes(folder, kept, {name: parameter.shape for name, parameter in head.state_dict().items()})
    head.load_state_dict(kept)
    head.confidence = recorded_confidence(config, folder / CONFIG)
    if (folder / VOCABULARY_FILE).is_file():
        head.vocabulary = load_vocabulary(folder / VOCABULARY_FILE, target)
    warn_of_other_target(folder, config, target, _WHAT)
    dtype = stored_dtype(kept) if stored else dtype
    return head.place(target.device, dtype or target.dtype).requires_grad_(False).eval()


def save_head(head: EagleHead, folder: Path, target: Target, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a head in the official layout. provenance: JSON values on how it was made; the target's hash is added."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_tensors(tensors, folder / SAFETENSORS)
    ours = {"target": target.hash, "confidence_scale": head.confidence.to_dict(), **(provenance or {})}
    record = {**_config(head.sizes, target), PROVENANCE: ours}
    (folder / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _check_names(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    if any(name.startswith("midlayer.") or name.endswith(".hidden_norm.weight") for name in tensors):
        raise ArtifactError(f"{folder} is an EAGLE-3 head; use it with method 'eagle3'")
    asked = [_BIASES["fc"]] if config.get("bias") is True else []  # left out it means what the tensors say
    check_names(folder, tensors, (*_WEIGHTS, *asked), (*_BIASES.values(), *_IGNORED), _WHAT)


def _sizes(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], target: Target) -> HeadSizes:
    embedding_size = target.model.get_input_embeddings().weight.shape[1]
    hidden_size = target.config.hidden_size
    found = tensors["fc.weight"].shape[0]
    if found != hidden_size:
        raise ArtifactError(
            f"{folder} is a head for targets of hidden size {found}, but {target.name} has {hidden_size}; "
            "give a head that was trained for this target"
        )
    copy = tensors.get(_EMBEDDING)
    if copy is not None and copy.shape[-1] != embedding_size:
        raise ArtifactError(
            f"{folder} holds embeddings of width {copy.shape[-1]}, but {target.name} has {embedding_size}; "
            "give a head that was trained for this target"
        )
    try:
        heads = attention_heads(config, tensors)
        return HeadSizes(
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            intermediate_size=tensors[f"{_LAYER}mlp.gate_proj.weight"].shape[0],
            **heads,
            biases=frozenset(name for name, tensor in _BIASES.items() if tensor in tensors),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            hidden_act=str(config.get("hidden_act", "silu")),
            rope=rope_parameters(config),
        )
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: {error}") from error


def attention_heads(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers and width of the attention heads.

    Tensors show only the product of width and number, so the config must name the width or the number of query heads;
    its number of key heads is not needed and not read.
    """
    q_rows, k_rows = (tensors[f"{_LAYER}self_attn.{name}.weight"].shape[0] for name in ("q_proj", "k_proj"))
    head_dim, num_heads = (int(config.get(name) or 0) for name in ("head_dim", "num_attention_heads"))
    if not head_dim and not num_heads:
        raise InputError(f"{CONFIG} names no num_attention_heads; add the number of the head's query heads")
    head_dim = head_dim or q_rows // num_heads
    if q_rows != (num_heads or q_rows // head_dim) * head_dim or head_dim == 0 or k_rows % head_dim:
        raise InputError(
            f"q_proj.weight and k_proj.weight have {q_rows} and {k_rows} rows, which does not agree with "
            f"{num_heads} query heads of width {head_dim}; correct num_attention_heads or head_dim in {CONFIG}"
        )
    return {"num_heads": q_rows // head_dim, "num_kv_heads": k_rows // head_dim, "head_dim": head_dim}


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE as transformers names it now, from a config of any age."""
    old = config.get("rope_scaling") or {}
    parameters = {**old, **(config.get("rope_parameters") or {})}
    kind = parameters.pop("type", None) or "default"
    theta = parameters.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    return {"rope_type": kind, **parameters, "rope_theta": float(theta)}


def _config(sizes: HeadSizes, target: Target) -> dict[str, Any]:
    """config.json as the official code and other engines read it."""
    rope = dict(sizes.rope)
    theta = rope.pop("rope_theta")
    special = {name: getattr(target.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "num_hidden_layers": 1,
        "vocab_size": target.vocab_size,
        "rms_norm_eps": sizes.rms_norm_eps,
        "hidden_act": sizes.hidden_act,
        "max_position_embeddings": target.context_length,
        "rope_theta": theta,
        **({} if rope["rope_type"] == "default" else {"rope_scaling": rope}),
        "bias": "fc" in sizes.biases,
        **special,
    }
