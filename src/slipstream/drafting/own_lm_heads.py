"""LM heads of a drafter's own begin as copies of the target's, where that can be copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slipstream.errors import InputError
from slipstream.target.target import Target

_MEND = "share the target's: --shared-lm-head, or own_lm_heads=False"


def lm_head_to_copy(target: Target) -> tuple[Tensor, Tensor | None]:
    """Weight [vocab, h] and bias [vocab] of the target's LM head.

    Raises InputError where it is quantised (such a weight is packed, in another shape and type) or reads something else
    than the last hidden states.
    """
    head: Any = target.model.get_output_embeddings()
    expected = (target.vocab_size, target.config.hidden_size)
    mend = f"so LM heads of the drafter's own cannot start from it; {_MEND}"
    if not head.weight.is_floating_point() or head.weight.shape[0] != target.vocab_size:
        raise InputError(
            f"the LM head of {target.name} is quantised (its weight is {head.weight.dtype} of shape "
            f"{tuple(head.weight.shape)}), {mend}"
        )
    if tuple(head.weight.shape) != expected:
        raise InputError(
            f"the LM head of {target.name} reads {head.weight.shape[1]} numbers, not the {expected[1]} of a last "
            f"hidden state, {mend}"
        )
    return head.weight, getattr(head, "bias", None)
