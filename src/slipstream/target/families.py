"""What is known of models from their configuration: which cannot work, and what the others forbid.

Others ask a target's `Family` how far passes may reach, how a prompt is to be cut and when it has to be run again; that
rotary frequencies or scaled queries are the reason, they need not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from slipstream.errors import UnsupportedTargetError, first_line
from slipstream.target.arguments import required_beside_text

RUNNING_ERRORS = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError, AssertionError)
"""What a model that cannot work ends a pass with."""
LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
_STATES = ("linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba")
_ATTENTION = ("sdpa", "eager")
_ROLLING_ROPE = ("longrope", "dynamic")  # their frequencies depend on the largest position of a pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a model's positions forbid. Texts are counted in tokens, the root included."""

    context_length: int | None = None
    """Tokens that the positions reach; None where the configuration names no limit."""
    rolling_rope: str | None = None
    """`longrope` or `dynamic` where the rotary frequencies depend on the largest position of a pass."""
    rope_boundary: int | None = None
    """Number of tokens up to which a rolling RoPE behaves like a fixed one."""
    query_step: int | None = None
    """Llama 4 scales queries by floor((slot + 1) / query_step); None: no query is scaled by its slot."""

    @classmethod
    def find(cls, config: Any) -> Family:
        """Read it off a text config."""
        rope = getattr(config, "rope_parameters", None) or {}
        rolling = next((kind for kind in _ROLLING_ROPE if rope.get("rope_type") == kind), None)
        boundary = None
        if rolling is not None:
            boundary = int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        step = getattr(config, "floor_scale", None) if getattr(config, "attn_temperature_tuning", False) else None
        return cls(
            context_length=context_length(config),
            rolling_rope=rolling,
            rope_boundary=boundary,
            query_step=None if step is None else int(step),
        )

    @property
    def may_cut_passes(self) -> bool:
        """Whether a text may be run in any number of passes."""
        return self.rolling_rope is None

    @property
    def may_pack_texts(self) -> bool:
        """Whether several texts may share a pass: a row's slot and the longest text of a pass mean nothing."""
        return self.may_cut_passes and self.query_step is None

    @property
    def may_keep_keys(self) -> bool:
        """Whether keys that are cached stay valid however long the text grows."""
        return self.rolling_rope != "longrope"

    @property
    def remembers_passes(self) -> bool:
        """Whether the model takes a pass for as long as the longest before it, unless it is made to forget."""
        return self.rolling_rope == "dynamic"

    def reach(self, length: int) -> int | None:
        """Tokens up to which passes may run a text of `length` tokens, without crossing into other frequencies."""
        limit, boundary = self.context_length, self.rope_boundary
        if boundary is not None and (length <= boundary or self.rolling_rope == "dynamic"):
            return boundary if limit is None else min(limit, boundary)
        return limit

    def prefill_chunks(self, length: int, chunk: int) -> Iterator[tuple[int, int]]:
        """(first, end) of the passes that prefill a text of `length` tokens, of about `chunk` tokens each.

        The root needs no prefill; where passes must not be cut, it is part of the one pass all the same.
        """
        if length > 1 and not self.may_cut_passes:
            yield 0, length
            return
        for first in range(0, length - 1, chunk):
            yield first, min(first + chunk, length - 1)

    def must_reprefill(self, cached: int, length: int) -> bool:
        """Whether the keys of `cached` tokens are void for a text that has grown to `length` tokens."""
        return not self.may_keep_keys and self.rope_boundary is not None and cached <= self.rope_boundary < length

    def most_nodes(self, cached: int) -> int | None:
        """Nodes that a tree after `cached` tokens may have; None: any number.

        Within one step of the query scale, slots may stand for positions.
        """
        step = self.query_step
        return None if step is None else max(0, step * ((cached + 1) // step + 1) - cached - 2)


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
        raise UnsupportedTargetError(f"{name} uses attention {attention!r}: {other_masks(attention)}")
    refuse_class(type(model), model.config, name)
    if model.config.is_encoder_decoder:
        raise UnsupportedTargetError(f"{name} is an encoder-decoder model; only decoder-only models are supported")
    if model.get_output_embeddings() is None:
        raise UnsupportedTargetError(f"{name} has no LM head; load it with AutoModelForCausalLM")


def refuse_class(kind: type, config: Any, name: str) -> None:
    """Refuse what a model's class and configuration tell, before there are weights."""
    text = config.get_text_config()
    if others := required_beside_text(kind.forward):  # type: ignore[attr-defined]
        raise UnsupportedTargetError(f"{name} cannot continue text alone: it needs {' and '.join(others)} as well")
    if getattr(kind, "_is_stateful", False):
        raise UnsupportedTargetError(f"{name} keeps a recurrent state, which cannot be rolled back after a rejection")
    if getattr(text, "is_decoder", None) is False and hasattr(text, "add_cross_attention"):
        raise UnsupportedTargetError(
            f"{name} is an encoder, whose tokens see those after them; a decoder's config.json says is_decoder: true"
        )
    if getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt"):
        raise UnsupportedTargetError(f"{name} uses ALiBi, whose biases follow cache slots, not the positions of a tree")
    if not isinstance(getattr(text, "num_hidden_layers", None), int):
        raise UnsupportedTargetError(
            f"{name} names no num_hidden_layers, so it is no single stack of layers with a cache"
        )
    if "local" in (getattr(text, "attention_layers", None) or ()):
        raise UnsupportedTargetError(f"{name} has local attention layers that mask by cache slot, not by position")
    refuse_layers(text, name)


def refuse_layers(config: Any, name: str) -> None:
    """Refuse layers that are neither attention to all tokens nor to those in a window or chunk."""
    for kind in getattr(config, "layer_types", None) or ():
        if kind in _STATES:
            raise UnsupportedTargetError(
                f"{name} has layers of type {kind!r}, whose state cannot be rolled back after a rejection"
            )
        if kind not in LAYERS:
            raise UnsupportedTargetError(
                f"{name} has layers of type {kind!r}, whose attention follows more than a mask, so that the branches "
                "of a draft tree cannot be hidden from each other"
            )


def other_masks(attention: str) -> str:
    """Why an implementation of attention cannot be used, and what can."""
    return "it takes no 4-D mask, which a draft tree needs; load the model with sdpa or eager (attention='sdpa')"


def cannot_run(model: PreTrainedModel, name: str, error: Exception) -> str:
    """What to say of a model that fails on tokens alone, without a mask, a position or a cache of ours."""
    dtype = str(model.dtype).removeprefix("torch.")
    hint = ""
    if model.dtype == torch.float64 and hasattr(model, "set_experts_implementation") and _is_about_dtype(error):
        hint = "; its experts may have no kernel for float64: model.set_experts_implementation('eager')"
    return f"{name} cannot run a token in {dtype}: {first_line(error)}{hint}"


def _is_about_dtype(error: Exception) -> bool:
    return any(word in str(error) for word in ("dtype", "Double", "double"))
