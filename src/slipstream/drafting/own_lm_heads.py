"""LM heads of a drafter's own begin as copies of the target's, where that can be copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slipstream.errors import InputError
from slipstream.target.target import Target


def lm_head_to_copy(target: Target) -> tuple[Tensor, Tensor | None]:
    """Weight [vocab, h] and bias [vocab] of the target's LM head.

    Raises InputError where it is quantised: such a weight is packed, in another shape and type.
    """
    head: Any = target.model.get_output_embeddings()
    expected = (target.vocab_size, target.config.hidden_size)
    if tuple(head.weight.shape) != expected or not head.weight.is_floating_point():
        raise InputError(
            f"the LM head of {target.name} is quantised (its weight is {head.weight.dtype} of shape "
            f"{tuple(head.weight.shape)}), so LM heads of the drafter's own cannot start from it; share "
            "the target's: --shared-lm-head, or own_lm_heads=False"
        )
    return head.weight, getattr(head, "bias", None)
