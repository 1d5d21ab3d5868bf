"""LM heads of a drafter's own start as copies of the target's; of a quantised one that is refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from families import build
from slipstream.drafting.own_lm_heads import lm_head_to_copy
from slipstream.errors import InputError
from slipstream.methods.hydra.recipe import new_heads
from slipstream.methods.hydra.settings import HydraSettings
from slipstream.methods.medusa.head import MedusaHeads
from slipstream.target.target import Target


def packed(target: Target, shape: tuple[int, ...], dtype: torch.dtype) -> Target:
    """The target with an LM head whose weight is stored as quantising packages store it."""
    weight = torch.zeros(shape, dtype=dtype)
    target.model.get_output_embeddings().weight = nn.Parameter(weight, requires_grad=False)
    return target


STORED = {  # of an LM head of 64 x 32
    "two entries a byte": ((64 * 32 // 2, 1), torch.uint8),
    "one entry a byte": ((64, 32), torch.int8),
}
MAKERS: dict[str, Callable[[Target], object]] = {
    "medusa": lambda target: MedusaHeads.like(target, num_heads=2),
    "hydra": lambda target: new_heads(target, HydraSettings(num_heads=2, own_lm_heads=True)),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("method", MAKERS)
def test_a_quantised_lm_head_is_not_copied(method: str, stored: str) -> None:
    target = packed(Target(build("llama").float()), *STORED[stored])
    with pytest.raises(InputError, match=r"the LM head of .* is quantised .*--shared-lm-head"):
        MAKERS[method](target)


@pytest.mark.parametrize(("name", "has_bias"), [("llama", False), ("phi", True)])
def test_weight_and_bias_are_the_lm_heads(name: str, has_bias: bool, family_model: Callable[[str], object]) -> None:
    target = Target(family_model(name))
    head = target.model.get_output_embeddings()
    assert lm_head_to_copy(target) == (head.weight, head.bias)
    assert (head.bias is not None) == has_bias


@pytest.mark.parametrize("method", MAKERS)
def test_an_lm_head_behind_another_layer_is_refused_for_that_reason(method: str) -> None:
    settings = {"is_decoder": True, "input_embedding_size": 32, "output_embedding_size": 48}
    target = Target(build("rembert", attention="eager", **settings))
    with pytest.raises(InputError, match=r"LM head of .* reads 48 numbers, not the 32 of a last hidden .*--shared"):
        MAKERS[method](target)
