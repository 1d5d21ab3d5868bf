"""A draft model that was saved loads again with every tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from families import VOCAB_SIZE
from slipstream.methods.draft_model.checkpoint import save_draft
from slipstream.target.loading import load_model
from slipstream.target.target import Target

SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("family", ["llama", "apertus", "dots1"])
def test_buffers_that_belong_to_the_weights_are_saved_with_them(family, family_model, tmp_path: Path) -> None:
    from transformers import AutoConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL)).bfloat16()
    buffers = {name for name, _ in model.named_buffers() if name in model.state_dict()}
    assert bool(buffers) == (family != "llama")
    for name in buffers:
        model.get_buffer(name).fill_(0.375)
    save_draft(model, tmp_path, Target(family_model("llama")))
    loaded = load_model(tmp_path, dtype="bfloat16", device="cpu", attention=None).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
