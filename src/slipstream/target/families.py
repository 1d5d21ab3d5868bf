"""What is known of models from their configuration: how far their positions reach, and which cannot work."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from slipstream.errors import UnsupportedTargetError

_ATTENTION = ("sdpa", "eager")


def context_length(config: Any) -> int | None:
    """Tokens that the target's positions reach; None where the config names no limit."""
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is not None and rope.get("rope_type") == "dynamic":  # there the config names the unscaled length
        return int(limit * rope.get("factor", 1.0))
    return limit


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Refuse, with the reason, what is known not to work before anything is run."""
    config = model.config.get_text_config()
    name = config._name_or_path or type(model).__name__
    attention = config._attn_implementation
    if attention not in _ATTENTION:
        raise UnsupportedTargetError(
            f"{name} uses attention {attention!r}, whose kernels take no tree mask; load it with attention='sdpa'"
        )
    if model.config.is_encoder_decoder:
        raise UnsupportedTargetError(f"{name} is an encoder-decoder model; only decoder-only models are supported")
    if model.get_output_embeddings() is None:
        raise UnsupportedTargetError(f"{name} has no LM head; load it with AutoModelForCausalLM")
    if getattr(model, "_is_stateful", False):
        raise UnsupportedTargetError(f"{name} keeps a recurrent state, which cannot be rolled back after a rejection")
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        raise UnsupportedTargetError(f"{name} uses ALiBi, whose biases follow cache slots, not the positions of a tree")
    if "local" in (getattr(config, "attention_layers", None) or ()):
        raise UnsupportedTargetError(f"{name} has local attention layers that mask by cache slot, not by position")
